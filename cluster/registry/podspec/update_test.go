package podspec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestValidatePodUpdate(t *testing.T) {
	const forbidden = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"
	const base = `initContainers: [{name: i, image: b:1}]
containers: [{name: a, image: b:1}]
activeDeadlineSeconds: 10
tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 3}]
`
	for _, c := range []struct {
		name, old, now string
		want           []string // each is the start of an error
	}{
		{"nothing", base, base, nil},
		{"images", base, strings.ReplaceAll(base, "b:1", "b:2"), nil},
		{"deadline down", base, strings.ReplaceAll(base, "Seconds: 10", "Seconds: 5"), nil},
		{"deadline up", base, strings.ReplaceAll(base, "Seconds: 10", "Seconds: 50"), []string{"spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value"}},
		{"deadline gone", base, strings.ReplaceAll(base, "activeDeadlineSeconds: 10\n", ""), []string{"spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value"}},
		{"toleration added", base, strings.ReplaceAll(base, "Seconds: 3}]", "Seconds: 4}, {key: b}]"), nil},
		{"toleration changed", base, strings.ReplaceAll(base, "NoExecute, tolerationSeconds: 3", "NoSchedule"), []string{"spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"}},
		{"container added", base, strings.ReplaceAll(base, "image: b:1}]\nactive", "image: b:1}, {name: c, image: d}]\nactive"), []string{"spec.containers: Forbidden: pod updates may not add or remove containers"}},
		{"resources", base, strings.ReplaceAll(base, "{name: a, image: b:1}", "{name: a, image: b:1, resources: {limits: {cpu: 1}}}"), []string{forbidden}},
		{"node", base, base + "nodeName: x", []string{forbidden}},
		{"negative grace mended", base + "terminationGracePeriodSeconds: -5", base + "terminationGracePeriodSeconds: 1", nil},
		{"grace changed", base + "terminationGracePeriodSeconds: 5", base + "terminationGracePeriodSeconds: 1", []string{forbidden}},
		{"gate opened", base + "schedulingGates: [{name: a.b/c}]", base, nil},
		{"gate added", base, base + "schedulingGates: [{name: a.b/c}]", []string{"spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'a.b/c'"}},
		{"gated pod narrowed", base + "schedulingGates: [{name: a.b/c}]", base + "schedulingGates: [{name: a.b/c}]\nnodeSelector: {a: b}\naffinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}", nil},
		{"gated pod widened by what is added to a term that allows nothing", base + "schedulingGates: [{name: a.b/c}]\naffinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{}]}}}",
			base + "schedulingGates: [{name: a.b/c}]\naffinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}",
			[]string{`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]: Invalid value: {"matchExpressions":[{"key":"a","operator":"Exists"}]}: only additions are allowed (no mutations or deletions)`}},
		{"gated pod widened", base + "schedulingGates: [{name: a.b/c}]\nnodeSelector: {a: b}", base + "schedulingGates: [{name: a.b/c}]", []string{"spec.nodeSelector: Invalid value: null: field is immutable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ValidatePodUpdate(podOf(t, c.now), podOf(t, c.old))
			if len(got) != len(c.want) {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i].Error(), c.want[i]) {
					t.Errorf("got %v, want %v", got[i], c.want[i])
				}
			}
		})
	}
}

func TestMirrorAnnotationStays(t *testing.T) {
	old := podOf(t, `{nodeName: n, containers: [{name: a, image: b}]}`)
	pod := old.DeepCopy()
	pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	diffErrors(t, ValidatePodUpdate(pod, old), []string{`metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation`})
	diffErrors(t, ValidatePodUpdate(old, pod), []string{`metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not remove or update mirror pod annotation`})
	pod.Spec.NodeName = ""
	diffErrors(t, ValidatePod(pod), []string{`metadata.annotations[kubernetes.io/config.mirror]: Invalid value: "x": must set spec.nodeName if mirror pod annotation is set`})
}

func TestEphemeralContainersUpdate(t *testing.T) {
	old := podOf(t, `{containers: [{name: a, image: b}], ephemeralContainers: [{name: e, image: b}]}`)
	for _, c := range []struct {
		name, spec string
		want       []string
	}{
		{"added", `{containers: [{name: a, image: b}], ephemeralContainers: [{name: e, image: b}, {name: f, image: b, targetContainerName: a}]}`, nil},
		{"removed", `{containers: [{name: a, image: b}]}`, []string{`spec.ephemeralContainers: Forbidden: existing ephemeral containers "e" may not be removed`}},
		{"changed", `{containers: [{name: a, image: b}], ephemeralContainers: [{name: e, image: c}]}`, []string{`spec.ephemeralContainers: Forbidden: existing ephemeral containers "e" may not be changed`}},
		{"wrong", `{containers: [{name: a, image: b}], ephemeralContainers: [{name: e, image: b}, {name: a, image: b, targetContainerName: z, ports: [{containerPort: 1}], livenessProbe: {exec: {command: [x]}}}]}`, []string{
			`spec.ephemeralContainers[1].name: Duplicate value: "a"`,
			`spec.ephemeralContainers[1].targetContainerName: Not found: "z"`,
			`spec.ephemeralContainers[1].ports: Forbidden: cannot be set for an Ephemeral Container`,
			`spec.ephemeralContainers[1].livenessProbe: Forbidden: cannot be set for an Ephemeral Container`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ValidateEphemeralContainersUpdate(podOf(t, c.spec), old)
			if len(got) != len(c.want) {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i].Error(), c.want[i]) {
					t.Errorf("got %v, want %v", got[i], c.want[i])
				}
			}
		})
	}
}

func TestStatusTransitions(t *testing.T) {
	ended := func(code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "a", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
	}
	running := corev1.ContainerStatus{Name: "a", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	for _, c := range []struct {
		policy string
		code   int32
		ok     bool
	}{{"Always", 0, true}, {"Always", 1, true}, {"OnFailure", 1, true}, {"OnFailure", 0, false}, {"Never", 0, false}, {"Never", 1, false}} {
		old := podOf(t, `{restartPolicy: `+c.policy+`, containers: [{name: a, image: b}]}`)
		old.Status.ContainerStatuses = []corev1.ContainerStatus{ended(c.code)}
		pod := old.DeepCopy()
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{running}
		var want []string
		if !c.ok {
			want = []string{`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`}
		}
		diffErrors(t, ValidatePodStatusUpdate(pod, old), want)
	}
	const rules = `{restartPolicy: Never, initContainers: [{name: i, image: b}], containers: [{name: a, image: b, restartPolicy: Never, restartPolicyRules: [{action: RULE, exitCodes: {operator: In, values: [42]}}]}]}`
	for _, c := range []struct {
		rule string
		code int32
		ok   bool
	}{{"Restart", 42, true}, {"Restart", 1, false}, {"RestartAllContainers", 42, true}, {"RestartAllContainers", 1, true}} {
		old := podOf(t, strings.Replace(rules, "RULE", c.rule, 1))
		old.Status.ContainerStatuses = []corev1.ContainerStatus{ended(c.code)}
		pod := old.DeepCopy()
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{running}
		if errs := ValidatePodStatusUpdate(pod, old); (len(errs) == 0) != c.ok {
			t.Errorf("%+v: %v", c, errs)
		}
	}
	// In a new sandbox init containers run again.
	again := podOf(t, strings.Replace(rules, "RULE", "Restart", 1))
	first := ended(0)
	first.Name = "i"
	again.Status.InitContainerStatuses = []corev1.ContainerStatus{first}
	for count, ok := range []bool{false, true} {
		pod := again.DeepCopy()
		pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "i", RestartCount: int32(count), State: running.State}}
		if errs := ValidatePodStatusUpdate(pod, again); (len(errs) == 0) != ok {
			t.Errorf("attempt %d: %v", count, errs)
		}
	}
	old := podOf(t, `{containers: [{name: a, image: b}]}`)
	pod := old.DeepCopy()
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "10.0.0.2"}}
	pod.Status.NominatedNodeName = "A"
	diffErrors(t, ValidatePodStatusUpdate(pod, old), []string{
		`status.nominatedNodeName: Invalid value: "A": ` + subdomainRule,
		`status.podIPs: Invalid value: [{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}]: may specify no more than one IP for each IP family`,
	})
}

func TestWarnings(t *testing.T) {
	pod := podOf(t, `
nodeSelector: {beta.kubernetes.io/os: linux}
terminationGracePeriodSeconds: -1
imagePullSecrets: [{}]
volumes: [{name: g, gitRepo: {repository: x}}]
containers:
- {name: a, image: b, ports: [{containerPort: 80}, {containerPort: 80, name: x}], env: [{name: A}, {name: A}], resources: {limits: {memory: 500m}}}
`)
	pod.Name = "a.b"
	want := []string{
		`metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]`,
		`spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead`,
		`spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+`,
		`spec.imagePullSecrets[0].name: invalid empty name ""`,
		`spec.containers[0].resources.limits[memory]: fractional byte value "500m" is invalid, must be an integer`,
		`spec.containers[0].resources.requests[memory]: fractional byte value "500m" is invalid, must be an integer`,
		`spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply`,
		`spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]`,
	}
	if got := strings.Join(PodWarnings(pod, nil), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if got := PodWarnings(pod, pod.DeepCopy()); got != nil {
		t.Errorf("warnings without a change: %v", got)
	}
}
