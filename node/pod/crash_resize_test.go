package pod

import (
	"context"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

func (s gatedSandbox) UpdateResources(ctx context.Context, id string, r runtime.Resources) error {
	return s.g.step("update container", func() error { return s.Sandbox.UpdateResources(ctx, id, r) })
}

func (s gatedSandbox) UpdatePodResources(ctx context.Context, r runtime.Resources) error {
	return s.g.step("update pod", func() error { return s.Sandbox.UpdatePodResources(ctx, r) })
}

// save lets notes of what was granted through the gate, if there is one.
func (w *world) save(a *allocation, dir string, safe bool) error {
	w.mu.Lock()
	g := w.gate
	w.mu.Unlock()
	if g == nil {
		return a.write(dir, safe)
	}
	return g.step("write allocation", func() error { return a.write(dir, safe) })
}

// resized changes cpu in place and memory by a restart, and is deleted.
func (w *world) resized(p *v1.Pod) []func() bool {
	is := func(restarts int32, cpu, memory string) func() bool {
		return func() bool {
			got := w.get(p.Name)
			return got != nil && len(got.Status.ContainerStatuses) == 1 && has(cpu, memory)(got) && isReady(got) && got.Status.ContainerStatuses[0].RestartCount == restarts
		}
	}
	do := func(f func()) func() bool { return func() bool { f(); return true } }
	return []func() bool{
		is(0, "100m", "64Mi"),
		do(func() { w.change(p.Name, sized("200m", "64Mi")) }),
		is(0, "200m", "64Mi"),
		do(func() { w.change(p.Name, sized("200m", "32Mi")) }),
		is(1, "200m", "32Mi"),
		do(func() { w.remove(p.Name, 30) }),
		func() bool { return w.get(p.Name) == nil },
	}
}

// TestKilledBetweenStepsOfResize is TestKilledBetweenEachTwoSteps for a pod whose
// resources change: its container is restarted once, by whomever, and ends with
// what was asked for.
func TestKilledBetweenStepsOfResize(t *testing.T) {
	life{"resize", func(p *v1.Pod) {
		sized("100m", "64Mi")(p)
		p.Spec.RestartPolicy = v1.RestartPolicyOnFailure
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
	}, (*world).resized,
		[]string{"write allocation", "create sandbox", "start c/0", "update pod", "update container", "signal c", "start c/1", "write status", "remove sandbox", "delete object"},
		map[string]int{"start c": 2, "killed c": 0},
		map[string]int{"update c cpu=204/20000 memory=67108864": 1, "update pod cpu=204/20000 memory=33554432": 1, "terminated c": 2},
	}.killed(t)
}
