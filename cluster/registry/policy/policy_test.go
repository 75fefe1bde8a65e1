package policy

import (
	"strings"
	"testing"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func TestBudgets(t *testing.T) {
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := registrytest.Context("default", policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"))
	budget := func(change func(*policyv1.PodDisruptionBudgetSpec)) *policyv1.PodDisruptionBudget {
		b := &policyv1.PodDisruptionBudget{}
		b.Name, b.Namespace = "x", "default"
		b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		change(&b.Spec)
		return b
	}
	percent := func(s string) *intstr.IntOrString { return ptr.To(intstr.FromString(s)) }
	for want, change := range map[string]func(*policyv1.PodDisruptionBudgetSpec){
		"minAvailable and maxUnavailable cannot be both set": func(s *policyv1.PodDisruptionBudgetSpec) {
			s.MinAvailable, s.MaxUnavailable = percent("1%"), percent("1%")
		},
		"spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%": func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable = percent("101%") },
		"spec.maxUnavailable: Invalid value: \"x\": a valid percent string":         func(s *policyv1.PodDisruptionBudgetSpec) { s.MaxUnavailable = percent("x") },
		"spec.minAvailable: Invalid value: -1: must be greater than or equal to 0":  func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable = ptr.To(intstr.FromInt32(-1)) },
		"spec.selector.matchLabels: Invalid value":                                  func(s *policyv1.PodDisruptionBudgetSpec) { s.Selector.MatchLabels["a b"] = "" },
		`spec.unhealthyPodEvictionPolicy: Unsupported value: "Never": supported values: "AlwaysAllow", "IfHealthyBudget"`: func(s *policyv1.PodDisruptionBudgetSpec) {
			s.UnhealthyPodEvictionPolicy = ptr.To(policyv1.UnhealthyPodEvictionPolicyType("Never"))
		},
	} {
		if _, err := env.Create(ctx, m["poddisruptionbudgets"], budget(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	obj, err := env.Create(ctx, m["poddisruptionbudgets"], budget(func(s *policyv1.PodDisruptionBudgetSpec) { s.MinAvailable = percent("50%") }))
	if err != nil {
		t.Fatal(err)
	}
	b := obj.(*policyv1.PodDisruptionBudget).DeepCopy()
	b.Status.DisruptionsAllowed = 2
	b.Spec.MinAvailable = percent("1%") // not through the status
	if obj, err = env.Update(ctx, m["poddisruptionbudgets/status"], b); err != nil {
		t.Fatal(err)
	}
	columns, cells := registrytest.Cells(t, m["poddisruptionbudgets"], obj)
	if got := strings.Join(columns, "|"); got != "Name|Min Available|Max Unavailable|Allowed Disruptions|Age" {
		t.Errorf("columns %s", got)
	}
	if cells[1] != "50%" || cells[2] != "N/A" || cells[3] != int64(2) {
		t.Errorf("row %v", cells)
	}
	b = obj.(*policyv1.PodDisruptionBudget).DeepCopy()
	b.Status.ExpectedPods = -1
	if _, err := env.Update(ctx, m["poddisruptionbudgets/status"], b); err == nil || !strings.Contains(err.Error(), "status.expectedPods: Invalid value: -1") {
		t.Errorf("error %v", err)
	}
}
