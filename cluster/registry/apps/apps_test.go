package apps

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/scheme"
)

func testScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s, err := scheme.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := AddDefaults(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// kinds are the declarations by kind name, with what makes an empty object.
var kinds = map[string]struct {
	declared registry.Kind
	empty    func() runtime.Object
}{
	"Deployment":         {deployments(), func() runtime.Object { return &appsv1.Deployment{} }},
	"ReplicaSet":         {replicaSets(), func() runtime.Object { return &appsv1.ReplicaSet{} }},
	"DaemonSet":          {daemonSets(), func() runtime.Object { return &appsv1.DaemonSet{} }},
	"StatefulSet":        {statefulSets(), func() runtime.Object { return &appsv1.StatefulSet{} }},
	"ControllerRevision": {controllerRevisions(), func() runtime.Object { return &appsv1.ControllerRevision{} }},
}

func object(t *testing.T, s *runtime.Scheme, kind, text string) runtime.Object {
	t.Helper()
	obj := kinds[kind].empty()
	if err := yaml.Unmarshal([]byte(text), obj); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	s.Default(obj)
	return obj
}

const podPart = `selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: "i:1"}]}}`

func TestDefaults(t *testing.T) {
	s := testScheme(t)
	d := object(t, s, "Deployment", `{spec: {`+podPart+`}}`).(*appsv1.Deployment).Spec
	if *d.Replicas != 1 || *d.RevisionHistoryLimit != 10 || *d.ProgressDeadlineSeconds != 600 || d.Strategy.Type != "RollingUpdate" ||
		d.Strategy.RollingUpdate.MaxSurge.String() != "25%" || d.Strategy.RollingUpdate.MaxUnavailable.String() != "25%" || d.Template.Spec.DNSPolicy == "" {
		t.Errorf("deployment: %+v", d)
	}
	d = object(t, s, "Deployment", `{spec: {replicas: 0, strategy: {type: Recreate}, `+podPart+`}}`).(*appsv1.Deployment).Spec
	if *d.Replicas != 0 || d.Strategy.RollingUpdate != nil {
		t.Errorf("deployment: %+v", d)
	}
	ds := object(t, s, "DaemonSet", `{spec: {`+podPart+`}}`).(*appsv1.DaemonSet).Spec
	if *ds.RevisionHistoryLimit != 10 || ds.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue() != 1 || ds.UpdateStrategy.RollingUpdate.MaxSurge.IntValue() != 0 {
		t.Errorf("daemon set: %+v", ds)
	}
	rs := object(t, s, "ReplicaSet", `{spec: {`+podPart+`}}`).(*appsv1.ReplicaSet).Spec
	if *rs.Replicas != 1 || rs.Template.Spec.SchedulerName != "default-scheduler" {
		t.Errorf("replica set: %+v", rs)
	}
	ss := object(t, s, "StatefulSet", `{spec: {`+podPart+`, volumeClaimTemplates: [{metadata: {name: d}}]}}`).(*appsv1.StatefulSet).Spec
	if *ss.Replicas != 1 || ss.PodManagementPolicy != "OrderedReady" || *ss.UpdateStrategy.RollingUpdate.Partition != 0 ||
		ss.PersistentVolumeClaimRetentionPolicy.WhenScaled != "Retain" || ss.VolumeClaimTemplates[0].Kind != "PersistentVolumeClaim" ||
		*ss.VolumeClaimTemplates[0].Spec.VolumeMode != "Filesystem" || ss.VolumeClaimTemplates[0].Status.Phase != "Pending" {
		t.Errorf("stateful set: %+v", ss)
	}
}

func texts(errs field.ErrorList) string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return strings.Join(out, "\n")
}

func TestValidation(t *testing.T) {
	s := testScheme(t)
	const mismatch = "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"
	for _, c := range []struct {
		kind, spec string
		want       []string
	}{
		{"Deployment", `{spec: {` + podPart + `}}`, nil},
		{"Deployment", `{spec: {selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, image: i}]}}}}`, []string{mismatch}},
		{"Deployment", `{spec: {template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, image: i}]}}}}`, []string{"spec.selector: Required value", mismatch}},
		{"Deployment", `{spec: {selector: {}, template: {spec: {containers: [{name: c, image: i}]}}}}`, []string{`spec.selector: Invalid value: {}: empty selector is invalid for deployment`}},
		{"Deployment", `{spec: {replicas: -1, minReadySeconds: 700, ` + podPart + `}}`, []string{
			"spec.replicas: Invalid value: -1: must be greater than or equal to 0",
			"spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
		}},
		{"Deployment", `{spec: {strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}, ` + podPart + `}}`, []string{
			"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
		}},
		{"Deployment", `{spec: {strategy: {rollingUpdate: {maxSurge: -1, maxUnavailable: 101%}}, ` + podPart + `}}`, []string{
			"spec.strategy.rollingUpdate.maxSurge: Invalid value: -1: must be greater than or equal to 0",
			"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
		}},
		{"Deployment", `{spec: {strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}, ` + podPart + `}}`, []string{
			"spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
		}},
		{"Deployment", `{spec: {strategy: {type: Blue}, ` + podPart + `}}`, []string{
			`spec.strategy.type: Unsupported value: "Blue": supported values: "Recreate", "RollingUpdate"`,
		}},
		{"Deployment", `{spec: {selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {restartPolicy: Never, activeDeadlineSeconds: 5, containers: [{name: c}]}}}}`, []string{
			"spec.template.spec.containers[0].image: Required value",
			`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`,
			"spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
		}},
		{"ReplicaSet", `{spec: {` + podPart + `}}`, nil},
		{"ReplicaSet", `{spec: {replicas: -2, selector: {matchLabels: {app: c}}, template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, image: i}]}}}}`, []string{
			"spec.replicas: Invalid value: -2: must be greater than or equal to 0", mismatch,
		}},
		{"DaemonSet", `{spec: {` + podPart + `}}`, nil},
		{"DaemonSet", `{spec: {updateStrategy: {rollingUpdate: {maxSurge: 1}}, ` + podPart + `}}`, []string{
			"spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
		}},
		{"DaemonSet", `{spec: {updateStrategy: {rollingUpdate: {maxUnavailable: 0}}, ` + podPart + `}}`, []string{
			"spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
		}},
		{"StatefulSet", `{metadata: {name: a}, spec: {serviceName: s, ` + podPart + `}}`, nil},
		{"StatefulSet", `{spec: {podManagementPolicy: X, updateStrategy: {type: OnDelete, rollingUpdate: {partition: 1}}, persistentVolumeClaimRetentionPolicy: {whenScaled: X}, ` + podPart + `}}`, []string{
			"spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'",
			"spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
			`spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "X": supported values: "Retain", "Delete"`,
		}},
		{"ControllerRevision", `{revision: -1}`, []string{"data: Required value: data is mandatory", "revision: Invalid value: -1: must be greater than or equal to 0"}},
		{"ControllerRevision", `{data: {a: b}, revision: 1}`, nil},
		{"ControllerRevision", `{data: [1], revision: 1}`, []string{`data: Invalid value: "[1]": must be a valid JSON object`}},
	} {
		got := texts(kinds[c.kind].declared.Validate(context.Background(), object(t, s, c.kind, c.spec)))
		if got != strings.Join(c.want, "\n") {
			t.Errorf("%s %s: got\n  %s\nwant\n  %s", c.kind, c.spec, got, strings.Join(c.want, "\n"))
		}
	}
}

func TestImmutable(t *testing.T) {
	s := testScheme(t)
	other := strings.ReplaceAll(podPart, "app: a", "app: b")
	for _, c := range []struct{ kind, old, now, want string }{
		{"Deployment", podPart, other, `spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable`},
		{"ReplicaSet", podPart, other, `spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable`},
		{"DaemonSet", podPart, other, `spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable`},
		{"StatefulSet", podPart, podPart + `, serviceName: x`, `spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden`},
		{"StatefulSet", podPart, podPart + `, replicas: 7, minReadySeconds: 3`, ``},
		{"Deployment", podPart, podPart + `, replicas: 7, paused: true`, ``},
	} {
		got := texts(kinds[c.kind].declared.ValidateUpdate(context.Background(), object(t, s, c.kind, `{spec: {`+c.now+`}}`), object(t, s, c.kind, `{spec: {`+c.old+`}}`)))
		if got != c.want {
			t.Errorf("%s: got\n  %s\nwant\n  %s", c.kind, got, c.want)
		}
	}
	rev := kinds["ControllerRevision"].declared
	got := texts(rev.ValidateUpdate(context.Background(), object(t, s, "ControllerRevision", `{data: {a: 1}}`), object(t, s, "ControllerRevision", `{data: {a: 2}}`)))
	if !strings.HasSuffix(got, "field is immutable") || !strings.HasPrefix(got, "data: ") {
		t.Errorf("controller revision: %s", got)
	}
}

func TestStatusValidation(t *testing.T) {
	s := testScheme(t)
	for _, c := range []struct{ kind, status, want string }{
		{"Deployment", `{replicas: 1, updatedReplicas: 2, readyReplicas: -1}`, "status.readyReplicas: Invalid value: -1: must be greater than or equal to 0\nstatus.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas\nstatus.availableReplicas: Invalid value: 0: cannot be greater than readyReplicas"},
		{"ReplicaSet", `{replicas: 2, readyReplicas: 1, availableReplicas: 2}`, "status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas"},
		{"DaemonSet", `{numberReady: -1}`, "status.numberReady: Invalid value: -1: must be greater than or equal to 0"},
		{"StatefulSet", `{replicas: 1, currentReplicas: 2}`, "status.currentReplicas: Invalid value: 2: cannot be greater than status.replicas"},
	} {
		got := texts(kinds[c.kind].declared.ValidateStatusUpdate(context.Background(), object(t, s, c.kind, `{status: `+c.status+`}`), object(t, s, c.kind, `{}`)))
		if got != c.want {
			t.Errorf("%s: got\n  %s\nwant\n  %s", c.kind, got, c.want)
		}
	}
}

func TestColumns(t *testing.T) {
	s := testScheme(t)
	ago := metav1.NewTime(time.Now().Add(-30*time.Minute - 10*time.Second)) // "30m" for 50 s
	for _, c := range []struct{ kind, text, headers, cells string }{
		{"Deployment", `{metadata: {name: web}, spec: {replicas: 3, ` + podPart + `}, status: {readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}}`,
			"Name Ready Up-to-date Available Age Containers* Images* Selector*", "web 1/3 2 1 30m c i:1 app=a"},
		{"ReplicaSet", `{metadata: {name: web}, spec: {replicas: 3, ` + podPart + `}, status: {replicas: 2, readyReplicas: 1}}`,
			"Name Desired Current Ready Age Containers* Images* Selector*", "web 3 2 1 30m c i:1 app=a"},
		{"DaemonSet", `{metadata: {name: web}, spec: {` + podPart + `}, status: {desiredNumberScheduled: 5, currentNumberScheduled: 4, numberReady: 3, updatedNumberScheduled: 2, numberAvailable: 1}}`,
			"Name Desired Current Ready Up-to-date Available Node Selector Age Containers* Images* Selector*", "web 5 4 3 2 1 <none> 30m c i:1 app=a"},
		{"StatefulSet", `{metadata: {name: web}, spec: {` + podPart + `}, status: {readyReplicas: 1}}`,
			"Name Ready Age Containers* Images*", "web 1/1 30m c i:1"},
		{"ControllerRevision", `{metadata: {name: r, ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: d, controller: true, uid: u}]}, revision: 7}`,
			"Name Controller Revision Age", "r daemonset.apps/d 7 30m"},
	} {
		obj := object(t, s, c.kind, c.text)
		obj.(metav1.Object).SetCreationTimestamp(ago)
		k := kinds[c.kind].declared
		var headers, cells []string
		for _, col := range k.Columns {
			wide := ""
			if col.Priority > 0 {
				wide = "*"
			}
			headers = append(headers, col.Name+wide)
		}
		for _, cell := range k.Row(obj) {
			cells = append(cells, fmt.Sprint(cell))
		}
		if got := strings.Join(headers, " "); got != c.headers {
			t.Errorf("%s: headers %q, want %q", c.kind, got, c.headers)
		}
		if got := strings.Join(cells, " "); got != c.cells {
			t.Errorf("%s: cells %q, want %q", c.kind, got, c.cells)
		}
		if len(headers) != len(cells) {
			t.Errorf("%s: %d headers, %d cells", c.kind, len(headers), len(cells))
		}
	}
}

func TestAnnotationsOfDeploymentsCountAsAChange(t *testing.T) {
	old := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 4, Annotations: map[string]string{"a": "b"}}}
	now := old.DeepCopy()
	deployments().PrepareForUpdate(context.Background(), now, old)
	if now.Generation != 4 {
		t.Errorf("generation %d without a change", now.Generation)
	}
	now.Annotations["a"] = "c"
	deployments().PrepareForUpdate(context.Background(), now, old)
	if now.Generation != 5 {
		t.Errorf("generation %d after an annotation changed", now.Generation)
	}
}
