package meter

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMeter(t *testing.T) {
	m := New("n1")
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}}
	for _, to := range []*Meter{nil, m} {
		to.Operation(RunSandbox, time.Now(), nil)
		to.Operation(RunSandbox, time.Now(), errors.New("x"))
		to.Started(Main, "")
		to.Started(Init, "RunContainerError")
		to.Terminated(Main, 139, "Error")
		to.PodRuns(3*time.Second, 2*time.Second, time.Second)
		to.Rejected("SysctlForbidden")
		to.Evicted("memory.available")
		to.Pulled(time.Second, 200<<20, nil)
		to.Pulled(time.Second, 0, errors.New("x"))
		to.Probed(p, "c", "Liveness", "failed", time.Millisecond)
		to.ImageRemoved("space")
	}
	check := func(g prometheus.Gatherer, want string, names ...string) {
		t.Helper()
		if err := testutil.GatherAndCompare(g, strings.NewReader(want), names...); err != nil {
			t.Error(err)
		}
	}
	check(m.Kubelet(), `
# HELP kubelet_terminated_containers_total Containers that ended.
# TYPE kubelet_terminated_containers_total counter
kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 1
# HELP kubelet_started_pods_total Pods that got a sandbox.
# TYPE kubelet_started_pods_total counter
kubelet_started_pods_total 1
# HELP kubelet_started_pods_errors_total Pods of which a sandbox could not be made.
# TYPE kubelet_started_pods_errors_total counter
kubelet_started_pods_errors_total 1
# HELP kubelet_runtime_operations_total Operations of the container runtime.
# TYPE kubelet_runtime_operations_total counter
kubelet_runtime_operations_total{operation_type="pull_image"} 2
kubelet_runtime_operations_total{operation_type="run_podsandbox"} 2
# HELP kubelet_node_name The node's name. The count is always 1.
# TYPE kubelet_node_name gauge
kubelet_node_name{node="n1"} 1
`, "kubelet_terminated_containers_total", "kubelet_started_pods_total", "kubelet_started_pods_errors_total", "kubelet_runtime_operations_total", "kubelet_node_name")
	asked := `
# HELP prober_probe_total Answers to liveness, readiness and startup probes.
# TYPE prober_probe_total counter
prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="failed"} 1
`
	check(m.Probes(), asked, "prober_probe_total")
	m.Gone(p)
	check(m.Probes(), "")
	if problems, err := testutil.GatherAndLint(m.Kubelet()); err != nil {
		t.Error(err)
	} else {
		for _, p := range problems {
			if p.Metric != "kubelet_evictions" { // as kubelet has it
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
		}
	}
}

func TestSizeClass(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0-10MB", 10<<20 - 1: "0-10MB", 10 << 20: "10MB-100MB", 700 << 20: "500MB-1GB", 2 << 30: "1GB-5GB", 200 << 30: "GT100GB"} {
		if got := sizeClass(bytes); got != want {
			t.Errorf("%d: %s", bytes, got)
		}
	}
}
