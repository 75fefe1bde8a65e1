package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// Pods of an account that asks for it have only the secrets that it lists.
func TestOnlyListedSecrets(t *testing.T) {
	env := func(secret string) []corev1.EnvVar {
		return []corev1.EnvVar{{Name: "E", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}}
	}
	envFrom := func(secret string) []corev1.EnvFromSource {
		return []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}
	}
	for _, tc := range []struct {
		name   string
		change func(p *corev1.Pod, secret string)
		listed string // a secret that is allowed there
		want   string
	}{
		{"volume", func(p *corev1.Pod, s string) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: s}}}}
		}, "mine", `volume with secret.secretName="other" is not allowed because service account default does not reference that secret`},
		{"variable", func(p *corev1.Pod, s string) { p.Spec.Containers[0].Env = env(s) }, "mine",
			`: container c with envVar E referencing secret.secretName="other" is not allowed`},
		{"variables", func(p *corev1.Pod, s string) { p.Spec.Containers[0].EnvFrom = envFrom(s) }, "mine",
			`: container c with envFrom referencing secret.secretName="other" is not allowed`},
		{"variable of an init container", func(p *corev1.Pod, s string) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Env: env(s)}}
		}, "mine", `init container i with envVar E referencing secret.secretName="other" is not allowed`},
		{"variables of an init container", func(p *corev1.Pod, s string) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", EnvFrom: envFrom(s)}}
		}, "mine", `init container i with envFrom referencing secret.secretName="other" is not allowed`},
		{"pull secret", func(p *corev1.Pod, s string) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: s}}
		}, "reg", `imagePullSecrets[0].name="other" is not allowed because service account default does not reference that imagePullSecret`},
		{"nothing", func(*corev1.Pod, string) {}, "mine", ""},
	} {
		for _, annotation := range []string{"", "false", "maybe", "true", "1"} {
			o := usual()
			o.account.Secrets = []corev1.ObjectReference{{Name: "mine"}}
			if annotation != "" {
				o.account.Annotations = map[string]string{enforceMountable: annotation}
			}
			on := annotation == "true" || annotation == "1"
			for secret, want := range map[string]string{"other": tc.want, tc.listed: ""} {
				if !on {
					want = ""
				}
				err := createPod(t, o, pod(func(p *corev1.Pod) { tc.change(p, secret) }))
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s %s, %s=%s: %v, want %q", tc.name, secret, enforceMountable, annotation, err, want)
				}
			}
		}
	}
}

// That holds for ephemeral containers, and does not get in the way of other
// changes of pods from before.
func TestOnlyListedSecretsLater(t *testing.T) {
	o := usual()
	o.account.Secrets = []corev1.ObjectReference{{Name: "mine"}}
	o.account.Annotations = map[string]string{enforceMountable: "true"}
	old := pod(func(p *corev1.Pod) {
		p.Spec.ServiceAccountName = "default"
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "other"}}}}
	})
	with := func(secret string) *corev1.Pod {
		p := old.DeepCopy()
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "i",
			EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}}}}
		return p
	}
	for sub, p := range map[string]*corev1.Pod{"ephemeralcontainers": with("mine"), "": old.DeepCopy(), "status": old.DeepCopy()} {
		if err := run(t, o, admin, admission.Update, "pods", sub, "ns", "p", p, old); err != nil {
			t.Errorf("%q: %v", sub, err)
		}
	}
	const want = `ephemeral container e with envFrom referencing secret.secretName="other" is not allowed because service account default does not reference that secret`
	if err := run(t, o, admin, admission.Update, "pods", "ephemeralcontainers", "ns", "p", with("other"), old); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}
