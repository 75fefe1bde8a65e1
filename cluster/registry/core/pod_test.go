package core

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	obj := new(T)
	if err := yaml.Unmarshal([]byte(text), obj); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return obj
}

// TestPodCells goes through what `kubectl get pods` says about a pod's life.
func TestPodCells(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) string { return now.Add(-d).UTC().Format(time.RFC3339) }
	const two = `spec: {containers: [{name: a}, {name: b}]}, status: `
	const inits = `spec: {initContainers: [{name: i}, {name: j}], containers: [{name: a}]}, status: `
	const sidecar = `spec: {initContainers: [{name: i, restartPolicy: Always}], containers: [{name: a}]}, status: `
	for _, c := range []struct{ name, pod, ready, status, restarts string }{
		{"new", two + `{phase: Pending}`, "0/2", "Pending", "0"},
		{"gated", two + `{phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: SchedulingGated}]}`, "0/2", "SchedulingGated", "0"},
		{"creating", two + `{phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ContainerCreating}}}, {name: b, state: {waiting: {reason: ContainerCreating}}}]}`, "0/2", "ContainerCreating", "0"},
		{"running", two + `{phase: Running, containerStatuses: [{name: a, ready: true, state: {running: {}}}, {name: b, ready: true, state: {running: {}}}]}`, "2/2", "Running", "0"},
		{"the first container has the last word", two + `{phase: Running, containerStatuses: [{name: a, state: {waiting: {reason: ImagePullBackOff}}}, {name: b, state: {waiting: {reason: CrashLoopBackOff}}}]}`, "0/2", "ImagePullBackOff", "0"},
		{"restarts and when", two + `{phase: Running, containerStatuses: [{name: a, ready: true, restartCount: 2, state: {running: {}}, lastState: {terminated: {finishedAt: "` + at(29*time.Minute+10*time.Second) + `"}}}, {name: b, restartCount: 1, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {finishedAt: "` + at(5*time.Hour) + `"}}}]}`, "1/2", "CrashLoopBackOff", "3 (29m ago)"},
		{"restarts at an unknown time", two + `{phase: Running, containerStatuses: [{name: a, ready: true, restartCount: 2, state: {running: {}}}]}`, "1/2", "Running", "2"},
		{"one completed, not ready", two + `{phase: Running, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}`, "1/2", "NotReady", "0"},
		{"one completed, ready", two + `{phase: Running, conditions: [{type: Ready, status: "True"}], containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}`, "1/2", "Running", "0"},
		{"one completed, one failed", two + `{phase: Failed, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, state: {terminated: {reason: OOMKilled, exitCode: 137}}}]}`, "0/2", "OOMKilled", "0"},
		{"completed", two + `{phase: Succeeded, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}]}`, "0/2", "Completed", "0"},
		{"error", two + `{phase: Failed, containerStatuses: [{name: a, state: {terminated: {reason: Error, exitCode: 1}}}]}`, "0/2", "Error", "0"},
		{"exit code", two + `{phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}]}`, "0/2", "ExitCode:3", "0"},
		{"signal", two + `{phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 137, signal: 9}}}]}`, "0/2", "Signal:9", "0"},
		{"evicted", two + `{phase: Failed, reason: Evicted}`, "0/2", "Evicted", "0"},
		{"init first", inits + `{phase: Pending, initContainerStatuses: [{name: i, state: {running: {}}}, {name: j, state: {waiting: {reason: PodInitializing}}}]}`, "0/1", "Init:0/2", "0"},
		{"init second", inits + `{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 0}}}, {name: j, state: {waiting: {reason: PodInitializing}}}]}`, "0/1", "Init:1/2", "0"},
		{"init crashes", inits + `{phase: Pending, initContainerStatuses: [{name: i, restartCount: 4, state: {waiting: {reason: CrashLoopBackOff}}}]}`, "0/1", "Init:CrashLoopBackOff", "4"},
		{"init error", inits + `{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 1, reason: Error}}}]}`, "0/1", "Init:Error", "0"},
		{"init exit code", inits + `{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 2}}}]}`, "0/1", "Init:ExitCode:2", "0"},
		{"init signal", inits + `{phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 137, signal: 9}}}]}`, "0/1", "Init:Signal:9", "0"},
		{"init done", inits + `{phase: Pending, initContainerStatuses: [{name: i, restartCount: 1, state: {terminated: {exitCode: 0}}}, {name: j, state: {terminated: {exitCode: 0}}}], containerStatuses: [{name: a, state: {waiting: {reason: PodInitializing}}}]}`, "0/1", "PodInitializing", "0"},
		{"sidecar counts", sidecar + `{phase: Running, initContainerStatuses: [{name: i, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [{name: a, ready: true, restartCount: 1, state: {running: {}}}]}`, "2/2", "Running", "2"},
		{"sidecar not started", sidecar + `{phase: Pending, initContainerStatuses: [{name: i, started: false, state: {running: {}}}]}`, "0/2", "Init:0/1", "0"},
		{"terminating", `metadata: {deletionTimestamp: "` + at(0) + `"}, ` + two + `{phase: Running, containerStatuses: [{name: a, ready: true, state: {running: {}}}]}`, "1/2", "Terminating", "0"},
		{"terminating after its end", `metadata: {deletionTimestamp: "` + at(0) + `"}, ` + two + `{phase: Succeeded, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}]}`, "0/2", "Completed", "0"},
		{"node lost", `metadata: {deletionTimestamp: "` + at(0) + `"}, ` + two + `{phase: Running, reason: NodeLost}`, "0/2", "Unknown", "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			row := podRow(parse[corev1.Pod](t, `{`+c.pod+`}`))
			if len(row) != len(podColumns) {
				t.Fatalf("%d cells for %d columns", len(row), len(podColumns))
			}
			if row[1] != c.ready || row[2] != c.status || row[3] != c.restarts {
				t.Errorf("got %v, want %s %s %s", row[1:4], c.ready, c.status, c.restarts)
			}
		})
	}
}

func TestPodWideCells(t *testing.T) {
	pod := parse[corev1.Pod](t, `{metadata: {name: p}, spec: {nodeName: n1, containers: [{name: a}], readinessGates: [{conditionType: x}, {conditionType: y}]},
		status: {podIPs: [{ip: 10.42.0.3}], nominatedNodeName: m, conditions: [{type: x, status: "True"}, {type: y, status: "False"}]}}`)
	if got := fmt.Sprint(podRow(pod)[5:]); got != "[10.42.0.3 n1 m 1/2]" {
		t.Errorf("got %s", got)
	}
	if got := fmt.Sprint(podRow(&corev1.Pod{})[5:]); got != "[<none> <none> <none> <none>]" {
		t.Errorf("got %s", got)
	}
}

func TestPodGrace(t *testing.T) {
	sec := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name, pod string
		asked     *int64
		want      int64
	}{
		{"the pod's own", `{spec: {nodeName: n1, terminationGracePeriodSeconds: 30}}`, nil, 30},
		{"the caller's", `{spec: {nodeName: n1, terminationGracePeriodSeconds: 30}}`, sec(5), 5},
		{"at once", `{spec: {nodeName: n1, terminationGracePeriodSeconds: 30}}`, sec(0), 0},
		{"on no node", `{spec: {terminationGracePeriodSeconds: 30}}`, nil, 0},
		{"ended", `{spec: {nodeName: n1, terminationGracePeriodSeconds: 30}, status: {phase: Failed}}`, nil, 0},
		{"succeeded", `{spec: {nodeName: n1, terminationGracePeriodSeconds: 30}, status: {phase: Succeeded}}`, sec(9), 0},
		{"negative", `{spec: {nodeName: n1, terminationGracePeriodSeconds: -3}}`, nil, 1},
	} {
		o := &metav1.DeleteOptions{GracePeriodSeconds: c.asked}
		if !podGrace(context.Background(), parse[corev1.Pod](t, c.pod), o) || *o.GracePeriodSeconds != c.want {
			t.Errorf("%s: got %d, want %d", c.name, *o.GracePeriodSeconds, c.want)
		}
	}
	if podGrace(context.Background(), &corev1.Pod{}, nil) {
		t.Error("graceful without options")
	}
}

func TestNewPod(t *testing.T) {
	pod := parse[corev1.Pod](t, `{spec: {serviceAccountName: x, schedulingGates: [{name: a/b}], containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]}, status: {phase: Running}}`)
	podspec.SetPodDefaults(pod)
	pod.Spec.DeprecatedServiceAccount = ""
	preparePod(context.Background(), pod)
	if pod.Status.Phase != corev1.PodPending || pod.Status.QOSClass != corev1.PodQOSGuaranteed || pod.Spec.DeprecatedServiceAccount != "x" {
		t.Errorf("got %+v", pod.Status)
	}
	if c := pod.Status.Conditions; len(c) != 1 || c[0].Reason != "SchedulingGated" || c[0].Message != "Scheduling is blocked due to non-empty scheduling gates" || c[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions %+v", c)
	}
	pod.Spec.NodeName = "n"
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "b", ImagePullPolicy: "Never", TerminationMessagePolicy: "File"}}}
	var got []string
	for _, e := range validateNewPod(pod) {
		got = append(got, e.Error())
	}
	if want := "spec.ephemeralContainers: Forbidden: cannot be set on create\nspec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"; strings.Join(got, "\n") != want {
		t.Errorf("got %v", got)
	}
	open := pod.DeepCopy()
	open.Spec.SchedulingGates = nil
	preparePodUpdate(context.Background(), open, pod)
	if len(open.Status.Conditions) != 0 {
		t.Errorf("the gate is open, its condition stays: %+v", open.Status.Conditions)
	}
}

func TestAssign(t *testing.T) {
	b := parse[corev1.Binding](t, `{metadata: {name: p, annotations: {a: b}, labels: {zone: z}}, target: {kind: Node, name: n1}}`)
	for _, c := range []struct{ pod, want string }{
		{`{metadata: {name: p}, spec: {}}`, ""},
		{`{metadata: {name: p}, spec: {nodeName: m}}`, `pod p is already assigned to node "m"`},
		{`{metadata: {name: p, deletionTimestamp: "2026-01-01T00:00:00Z"}}`, "pod p is being deleted, cannot be assigned to a host"},
		{`{metadata: {name: p}, spec: {schedulingGates: [{name: x}]}}`, "pod p has non-empty .spec.schedulingGates"},
	} {
		pod := parse[corev1.Pod](t, c.pod)
		err := assign(pod, b)
		if c.want != "" {
			if err == nil || err.Error() != c.want {
				t.Errorf("%s: got %v, want %s", c.pod, err, c.want)
			}
			continue
		}
		if err != nil || pod.Spec.NodeName != "n1" || pod.Annotations["a"] != "b" || pod.Labels["zone"] != "z" || !hasCondition(pod, corev1.PodScheduled) {
			t.Errorf("%s: got %+v, %v", c.pod, pod, err)
		}
	}
	if errs := validateBinding(parse[corev1.Binding](t, `{target: {kind: Pod}}`)); len(errs) != 2 {
		t.Errorf("got %v", errs)
	}
}

func TestDisrupted(t *testing.T) {
	cause := func(err error) string {
		var s *apierrors.StatusError
		if !errors.As(err, &s) || s.ErrStatus.Details == nil || len(s.ErrStatus.Details.Causes) == 0 {
			return ""
		}
		return s.ErrStatus.Details.Causes[0].Message
	}
	for _, c := range []struct {
		budget, message, cause string
		code                   int32
	}{
		{`{metadata: {name: b}, status: {disruptionsAllowed: 2}}`, "", "", 0},
		{`{metadata: {name: b}, status: {disruptionsAllowed: 0, desiredHealthy: 3, currentHealthy: 3}}`,
			"Cannot evict pod as it would violate the pod's disruption budget.", "The disruption budget b needs 3 healthy pods and has 3 currently", 429},
		{`{metadata: {name: b, generation: 2}, status: {observedGeneration: 1, disruptionsAllowed: 2}}`,
			"Cannot evict pod as it would violate the pod's disruption budget.", "The disruption budget b is still being processed by the server.", 429},
		{`{metadata: {name: b}, status: {disruptionsAllowed: -1}}`, `poddisruptionbudgets.policy "b" is forbidden: pdb disruptions allowed is negative`, "", 403},
	} {
		next, err := disrupted(parse[policyv1.PodDisruptionBudget](t, c.budget), "p")
		if c.code == 0 {
			if err != nil || next.Status.DisruptionsAllowed != 1 || len(next.Status.DisruptedPods) != 1 {
				t.Errorf("%s: got %+v, %v", c.budget, next, err)
			}
			continue
		}
		var s apierrors.APIStatus
		if !errors.As(err, &s) || s.Status().Code != c.code || err.Error() != c.message || cause(err) != c.cause {
			t.Errorf("%s: got %v (%s), want %s (%s)", c.budget, err, cause(err), c.message, c.cause)
		}
	}
}

func TestReplicationController(t *testing.T) {
	rc := parse[corev1.ReplicationController](t, `{spec: {template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: "i:1"}]}}}}`)
	setReplicationControllerDefaults(rc)
	if *rc.Spec.Replicas != 1 || rc.Spec.Selector["app"] != "a" || rc.Labels["app"] != "a" {
		t.Errorf("defaults: %+v", rc)
	}
	if errs := replicationControllerKind.Validate(context.Background(), rc); len(errs) > 0 {
		t.Error(errs)
	}
	if got := fmt.Sprint(replicationControllerKind.Row(rc)[1:]); got != "[1 0 0 <unknown> c i:1 app=a]" {
		t.Errorf("row %s", got)
	}
	rc.Spec.Selector = map[string]string{"app": "b"}
	errs := replicationControllerKind.Validate(context.Background(), rc)
	if len(errs) != 1 || errs[0].Error() != "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`" {
		t.Error(errs)
	}
	errs = replicationControllerKind.Validate(context.Background(), &corev1.ReplicationController{})
	if errs.ToAggregate().Error() != "[spec.selector: Required value, spec.replicas: Required value, spec.template: Required value]" {
		t.Error(errs)
	}
}

func TestEphemeralUpdateKeepsTheRest(t *testing.T) {
	old := parse[corev1.Pod](t, `{metadata: {name: p, generation: 3, resourceVersion: "7"}, spec: {nodeName: n1, containers: [{name: a, image: b}]}, status: {phase: Running}}`)
	pod := old.DeepCopy()
	pod.Spec.NodeName, pod.Status.Phase, pod.Labels = "m", corev1.PodFailed, map[string]string{"a": "b"}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
	ephemeralUpdate{}.PrepareForUpdate(context.Background(), pod, old)
	if pod.Spec.NodeName != "n1" || pod.Status.Phase != corev1.PodRunning || pod.Labels != nil || pod.Generation != 4 || len(pod.Spec.EphemeralContainers) != 1 {
		t.Errorf("got %+v", pod)
	}
}

// A writer that does not know observedGeneration does not wipe it out.
func TestStatusKeepsObservedGenerations(t *testing.T) {
	old := parse[corev1.Pod](t, `{status: {observedGeneration: 3, qosClass: Burstable, conditions: [{type: a, observedGeneration: 1}, {type: b, observedGeneration: 2}, {type: a, observedGeneration: 3}]}}`)
	now := parse[corev1.Pod](t, `{status: {conditions: [{type: a}, {type: c}, {type: a}, {type: a}, {type: b, observedGeneration: 4}]}}`)
	preparePodStatusUpdate(context.Background(), now, old)
	var got []int64
	for _, c := range now.Status.Conditions {
		got = append(got, c.ObservedGeneration)
	}
	if now.Status.ObservedGeneration != 3 || now.Status.QOSClass != corev1.PodQOSBurstable || fmt.Sprint(got) != "[1 0 3 0 4]" {
		t.Errorf("got %d, %s, %v", now.Status.ObservedGeneration, now.Status.QOSClass, got)
	}
	later := parse[corev1.Pod](t, `{status: {observedGeneration: 5}}`)
	if preparePodStatusUpdate(context.Background(), later, old); later.Status.ObservedGeneration != 5 {
		t.Errorf("a newer one: %d", later.Status.ObservedGeneration)
	}
}

// Nodes of other makers and older controllers know one address of a pod only.
func TestStatusHasBothFormsOfAddresses(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                " []",
		`{podIP: 10.0.0.1}`: "10.0.0.1 [{10.0.0.1}]",
		`{podIPs: [{ip: 10.0.0.2}, {ip: "fd00::1"}]}`:                  "10.0.0.2 [{10.0.0.2} {fd00::1}]",
		`{podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}`:                  "10.0.0.1 [{10.0.0.1}]",
		`{podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}`: "10.0.0.1 [{10.0.0.1} {fd00::1}]",
	} {
		pod := parse[corev1.Pod](t, `{status: `+in+`}`)
		preparePodStatusUpdate(context.Background(), pod, &corev1.Pod{})
		if got := fmt.Sprint(pod.Status.PodIP, " ", pod.Status.PodIPs); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestPodFields(t *testing.T) {
	var obj runtime.Object = parse[corev1.Pod](t, `{spec: {nodeName: n1, hostNetwork: true}, status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}}`)
	set := podFields(obj)
	if set["spec.nodeName"] != "n1" || set["spec.hostNetwork"] != "true" || set["status.phase"] != "Running" || set["status.podIP"] != "10.0.0.1" {
		t.Errorf("got %v", set)
	}
}
