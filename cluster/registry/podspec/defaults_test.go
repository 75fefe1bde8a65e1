package podspec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"
)

// always is what every pod gets, container aside.
const always = `
dnsPolicy: ClusterFirst
restartPolicy: Always
schedulerName: default-scheduler
securityContext: {}
terminationGracePeriodSeconds: 30
`

func TestDefaults(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"latest is pulled anew", `{containers: [{name: a, image: nginx}]}`, `
containers: [{name: a, image: nginx, imagePullPolicy: Always, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}]
enableServiceLinks: true` + always},
		{"a tag or digest is not", `{serviceAccount: x, containers: [{name: a, image: "r.io:5000/nginx:1"}, {name: b, image: "nginx@sha256:0123456789012345678901234567890123456789012345678901234567890123"}]}`, `
containers:
- {name: a, image: "r.io:5000/nginx:1", imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}
- {name: b, image: "nginx@sha256:0123456789012345678901234567890123456789012345678901234567890123", imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}
serviceAccount: x
serviceAccountName: x
enableServiceLinks: true` + always},
		{"requests follow limits, quantities are rounded up", `{enableServiceLinks: false, containers: [{name: a, image: a:1, resources: {limits: {cpu: 100u, memory: 1Gi}, requests: {memory: 1Mi}}}]}`, `
containers: [{name: a, image: a:1, imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File, resources: {limits: {cpu: 1m, memory: 1Gi}, requests: {cpu: 1m, memory: 1Mi}}}]
enableServiceLinks: false` + always},
		{"ports and host network", `{hostNetwork: true, containers: [{name: a, image: a:1, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}`, `
hostNetwork: true
containers: [{name: a, image: a:1, imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File, ports: [{containerPort: 80, hostPort: 80, protocol: TCP}, {containerPort: 53, hostPort: 53, protocol: UDP}]}]
enableServiceLinks: true` + always},
		{"probes and hooks", `{containers: [{name: a, image: a:1, livenessProbe: {httpGet: {port: 80}}, readinessProbe: {periodSeconds: 1, grpc: {port: 1}}, lifecycle: {preStop: {httpGet: {port: 80}}}}]}`, `
containers:
- {name: a, image: a:1, imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File,
  livenessProbe: {httpGet: {port: 80, path: /, scheme: HTTP}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3},
  readinessProbe: {grpc: {port: 1, service: ""}, timeoutSeconds: 1, periodSeconds: 1, successThreshold: 1, failureThreshold: 3},
  lifecycle: {preStop: {httpGet: {port: 80, path: /, scheme: HTTP}}}}
enableServiceLinks: true` + always},
		{"volumes", `
containers: [{name: a, image: a:1, env: [{name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]
volumes:
- {name: e}
- {name: h, hostPath: {path: /x}}
- {name: c, configMap: {name: c}}
- {name: s, secret: {secretName: s, defaultMode: 256}}
- {name: d, downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}]}}
- {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}
- {name: q, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce]}}}}
- {name: i, image: {reference: a}}`, `
containers: [{name: a, image: a:1, imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File, env: [{name: N, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}]}]
enableServiceLinks: true
volumes:
- {name: e, emptyDir: {}}
- {name: h, hostPath: {path: /x, type: ""}}
- {name: c, configMap: {name: c, defaultMode: 420}}
- {name: s, secret: {secretName: s, defaultMode: 256}}
- {name: d, downwardAPI: {defaultMode: 420, items: [{path: l, fieldRef: {apiVersion: v1, fieldPath: metadata.labels}}]}}
- {name: p, projected: {defaultMode: 420, sources: [{serviceAccountToken: {path: t, expirationSeconds: 3600}}]}}
- {name: q, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], volumeMode: Filesystem}}}}
- {name: i, image: {reference: a, pullPolicy: Always}}` + always},
		{"pod resources", `{resources: {limits: {cpu: 2, memory: 1Gi}}, containers: [{name: a, image: a:1, resources: {requests: {cpu: 500m}}}]}`, `
containers: [{name: a, image: a:1, imagePullPolicy: IfNotPresent, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File, resources: {requests: {cpu: 500m}}}]
resources: {limits: {cpu: 2, memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}
enableServiceLinks: true` + always},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want corev1.PodSpec
			if err := yaml.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			pod := podOf(t, c.in)
			if !apiEqual(pod.Spec, want) {
				t.Error(cmp.Diff(want, pod.Spec))
			}
			again := pod.DeepCopy()
			SetPodDefaults(again)
			if !apiEqual(pod, again) {
				t.Error("defaulting twice changes something:", cmp.Diff(pod, again))
			}
		})
	}
}

func TestTemplateStaysAsWritten(t *testing.T) {
	var tpl corev1.PodTemplateSpec
	if err := yaml.Unmarshal([]byte(`{spec: {hostNetwork: true, containers: [{name: a, image: b, ports: [{containerPort: 80}], resources: {limits: {cpu: 1}}}]}}`), &tpl); err != nil {
		t.Fatal(err)
	}
	SetTemplateDefaults(&tpl)
	c := tpl.Spec.Containers[0]
	if tpl.Spec.EnableServiceLinks != nil || c.Ports[0].HostPort != 0 || c.Resources.Requests != nil {
		t.Errorf("defaults of pods reached the template: %+v", tpl.Spec)
	}
}

func TestQOS(t *testing.T) {
	for _, c := range []struct {
		spec string
		want corev1.PodQOSClass
	}{
		{`{containers: [{name: a, image: b}]}`, corev1.PodQOSBestEffort},
		{`{containers: [{name: a, image: b, resources: {limits: {example.com/x: 1}}}]}`, corev1.PodQOSBestEffort},
		{`{containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]}`, corev1.PodQOSGuaranteed},
		{`{containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: c, image: b}]}`, corev1.PodQOSBurstable},
		{`{containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}}]}`, corev1.PodQOSBurstable},
		{`{containers: [{name: a, image: b, resources: {limits: {cpu: 1}}}]}`, corev1.PodQOSBurstable},
		{`{containers: [{name: a, image: b, resources: {requests: {memory: 1Gi}}}]}`, corev1.PodQOSBurstable},
		{`{initContainers: [{name: i, image: b}], containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]}`, corev1.PodQOSBurstable},
		{`{resources: {limits: {cpu: 1, memory: 1Gi}}, containers: [{name: a, image: b}]}`, corev1.PodQOSGuaranteed},
	} {
		if got := QOS(podOf(t, c.spec)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.spec, got, c.want)
		}
	}
}

// BenchmarkCreate is what this package costs a pod on its way in.
func BenchmarkCreate(b *testing.B) {
	var pod corev1.Pod
	if err := yaml.Unmarshal([]byte(`{metadata: {name: p}, spec: {volumes: [{name: v, configMap: {name: c}}], containers: [{name: a, image: "nginx:1.2", ports: [{containerPort: 80}],
		env: [{name: A, value: b}], volumeMounts: [{name: v, mountPath: /v}], resources: {limits: {cpu: 1, memory: 1Gi}}, livenessProbe: {httpGet: {port: 80}}}]}}`), &pod); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p := pod.DeepCopy()
		SetPodDefaults(p)
		if errs := ValidatePod(p); len(errs) > 0 {
			b.Fatal(errs)
		}
		QOS(p)
		PodWarnings(p, nil)
	}
}

func TestNegativeGrace(t *testing.T) {
	p := &corev1.Pod{}
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](-1)
	if SetPodDefaults(p); *p.Spec.TerminationGracePeriodSeconds != 1 {
		t.Errorf("%d", *p.Spec.TerminationGracePeriodSeconds)
	}
}
