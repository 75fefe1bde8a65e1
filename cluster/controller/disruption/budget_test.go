package disruption

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func ownerRef(version, kind, name string) *metav1.OwnerReference {
	return &metav1.OwnerReference{APIVersion: version, Kind: kind, Name: name, UID: types.UID("uid-" + name), Controller: ptr.To(true)}
}

func start(t *testing.T, objs ...runtime.Object) *controllertest.Cluster {
	t.Helper()
	c := controllertest.New(t, objs...)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	return c
}

// reason waits for the condition of budget b to have a reason, and gives its message.
func reason(t *testing.T, c *controllertest.Cluster, want string) string {
	t.Helper()
	message := ""
	controllertest.Eventually(t, func() string {
		b, err := c.Client.PolicyV1().PodDisruptionBudgets("ns").Get(context.Background(), "b", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if len(b.Status.Conditions) == 0 || b.Status.Conditions[0].Reason != want {
			return fmt.Sprintf("conditions %+v", b.Status.Conditions)
		}
		message = b.Status.Conditions[0].Message
		return ""
	})
	return message
}

// events gives what was recorded within d.
func events(c *controllertest.Cluster, d time.Duration) []string {
	var got []string
	for timeout := time.After(d); ; {
		select {
		case e := <-c.Events.Events:
			got = append(got, e)
		case <-timeout:
			return got
		}
	}
}

// What cannot be computed is told once, not again and again.
func TestFailureIsToldOnce(t *testing.T) {
	badSelector := atLeast(intstr.FromInt32(1))
	for _, tc := range []struct {
		name    string
		budget  func(*policyv1.PodDisruptionBudgetSpec)
		owner   *metav1.OwnerReference
		message string
		event   string
	}{
		{"kind without a scale", atMost(intstr.FromInt32(1)), ownerRef("apps/v1", "DaemonSet", "ds"),
			"daemonsets.apps does not implement the scale subresource",
			"Warning CalculateExpectedPodCountFailed Failed to calculate the number of expected pods: "},
		{"owner that is gone", atLeast(intstr.FromString("50%")), ownerRef("apps/v1", "ReplicaSet", "rs"),
			`found no controllers for pod "web-0"`,
			"Warning CalculateExpectedPodCountFailed Failed to calculate the number of expected pods: "},
		{"custom resource", atMost(intstr.FromInt32(1)), ownerRef("example.com/v1", "Widget", "w"),
			"the scale of widgets.example.com is not supported in disruption budgets: use an integer minAvailable",
			"Warning CalculateExpectedPodCountFailed Failed to calculate the number of expected pods: "},
		{"selector that means nothing", func(s *policyv1.PodDisruptionBudgetSpec) {
			badSelector(s)
			s.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Near"}}}
		}, nil, `"Near" is not a valid label selector operator`, "Warning NoPods Failed to get pods: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, budget(tc.budget), pod(1, true, tc.owner), pod(0, true, tc.owner))
			if got := reason(t, c, policyv1.SyncFailedReason); got != tc.message {
				t.Errorf("message %q, want %q", got, tc.message)
			}
			got := events(c, 300*time.Millisecond)
			if len(got) != 1 || got[0] != tc.event+tc.message {
				t.Errorf("events %q", got)
			}
			c.Settles(t, 100*time.Millisecond)
		})
	}
}

// Scaling counts although no pod changes.
func TestFollowsTheScale(t *testing.T) {
	ctx := context.Background()
	labels := map[string]string{"app": "web"}
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rs", UID: "uid-rs",
		OwnerReferences: []metav1.OwnerReference{*ownerRef("apps/v1", "Deployment", "d")}}, Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](2)}}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "d", UID: "uid-d"}, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](2)}}
	rs.Spec.Template.Labels, d.Spec.Template.Labels = labels, labels
	c := start(t, d, rs, budget(atMost(intstr.FromInt32(1))), pod(0, true, ownerRef("apps/v1", "ReplicaSet", "rs")), pod(1, true, ownerRef("apps/v1", "ReplicaSet", "rs")))
	reason(t, c, policyv1.SufficientPodsReason)
	d = d.DeepCopy()
	d.ResourceVersion, d.Spec.Replicas = "", ptr.To[int32](3)
	if _, err := c.Client.AppsV1().Deployments("ns").Update(ctx, d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	reason(t, c, policyv1.InsufficientPodsReason)
	// Without its Deployment, the ReplicaSet's own scale counts.
	if err := c.Client.AppsV1().Deployments("ns").Delete(ctx, "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	reason(t, c, policyv1.SufficientPodsReason)
	c.Settles(t, 100*time.Millisecond)
}

func TestUnmanagedPodsAreTold(t *testing.T) {
	c := start(t, budget(atLeast(intstr.FromString("50%"))), pod(0, true, nil))
	reason(t, c, policyv1.InsufficientPodsReason)
	got := events(c, 200*time.Millisecond)
	if len(got) != 1 || !strings.HasPrefix(got[0], "Warning UnmanagedPods Pods selected by this PodDisruptionBudget (selector: &LabelSelector{MatchLabels:map[string]string{app: web,}") {
		t.Errorf("events %q", got)
	}
}

// An eviction that nobody carries out is forgotten when its time is over.
func TestGrantedEvictionExpires(t *testing.T) {
	b := budget(atLeast(intstr.FromInt32(1)))
	b.Status.DisruptedPods = map[string]metav1.Time{"web-0": metav1.NewTime(time.Now().Add(time.Second - deletionTimeout))}
	c := start(t, b, pod(0, true, nil), pod(1, true, nil))
	reason(t, c, policyv1.InsufficientPodsReason)
	reason(t, c, policyv1.SufficientPodsReason)
	got := events(c, 100*time.Millisecond)
	if len(got) != 1 || got[0] != "Warning NotDeleted Pod was expected by PDB ns/b to be deleted but it wasn't" {
		t.Errorf("events %q", got)
	}
}
