package coordination

import (
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func TestLeases(t *testing.T) {
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := registrytest.Context("default", coordinationv1.SchemeGroupVersion.WithResource("leases"))
	lease := func(change func(*coordinationv1.LeaseSpec)) *coordinationv1.Lease {
		l := &coordinationv1.Lease{}
		l.Name, l.Namespace = "x", "default"
		l.Spec.HolderIdentity = ptr.To("me")
		change(&l.Spec)
		return l
	}
	for want, change := range map[string]func(*coordinationv1.LeaseSpec){
		"spec.leaseDurationSeconds: Invalid value: 0: must be greater than zero":       func(s *coordinationv1.LeaseSpec) { s.LeaseDurationSeconds = ptr.To(int32(0)) },
		"spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0": func(s *coordinationv1.LeaseSpec) { s.LeaseTransitions = ptr.To(int32(-1)) },
		"spec.strategy: Forbidden: coordinated leader election is not supported":       func(s *coordinationv1.LeaseSpec) { s.Strategy = ptr.To(coordinationv1.OldestEmulationVersion) },
	} {
		if _, err := env.Create(ctx, m["leases"], lease(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	// A PUT creates; a later one has to name the version that it replaces.
	obj, err := env.Update(ctx, m["leases"], lease(func(*coordinationv1.LeaseSpec) {}))
	if err != nil {
		t.Fatal(err)
	}
	columns, cells := registrytest.Cells(t, m["leases"], obj)
	if strings.Join(columns, "|") != "Name|Holder|Age" || cells[1] != "me" {
		t.Errorf("row %v of %v", cells, columns)
	}
	if _, err := env.Update(ctx, m["leases"], lease(func(*coordinationv1.LeaseSpec) {})); err == nil || !strings.Contains(err.Error(), "metadata.resourceVersion: Invalid value: 0: must be specified for an update") {
		t.Errorf("error %v", err)
	}
}
