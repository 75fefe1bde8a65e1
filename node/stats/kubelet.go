package stats

import (
	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/volume"
)

var (
	runningPods = desc("kubelet_running_pods", "Pods that have a sandbox.")
	runningCtrs = desc("kubelet_running_containers", "Containers, by their state.", "container_state")
	desiredPods = desc("kubelet_desired_pods", "Pods that the node is to run.", "static")
	activePods  = desc("kubelet_active_pods", "Pods that count when others are admitted.", "static")
	mirrorPods  = desc("kubelet_mirror_pods", "Pods of manifests.")

	ofClaim        = []string{"namespace", "persistentvolumeclaim"}
	volumeFamilies = []struct {
		desc *prometheus.Desc
		read func(volume.Stats) int64
	}{
		{desc("kubelet_volume_stats_capacity_bytes", "Size of the volume.", ofClaim...), func(s volume.Stats) int64 { return s.Capacity }},
		{desc("kubelet_volume_stats_available_bytes", "Bytes that are free in the volume.", ofClaim...), func(s volume.Stats) int64 { return s.Available }},
		{desc("kubelet_volume_stats_used_bytes", "Bytes that are used in the volume.", ofClaim...), func(s volume.Stats) int64 { return s.Used }},
		{desc("kubelet_volume_stats_inodes", "Inodes of the volume.", ofClaim...), func(s volume.Stats) int64 { return s.Inodes }},
		{desc("kubelet_volume_stats_inodes_free", "Inodes that are free in the volume.", ofClaim...), func(s volume.Stats) int64 { return s.InodesFree }},
		{desc("kubelet_volume_stats_inodes_used", "Inodes that are used in the volume.", ofClaim...), func(s volume.Stats) int64 { return s.InodesUsed }},
	}
)

// Kubelet collects what there is now of what a kubelet tells of itself. A claim
// that several pods have is told of once.
func (s Source) Kubelet() prometheus.Collector {
	return collector(func(ch chan<- prometheus.Metric) {
		var sandboxes, running, exited, mirrored float64
		desired, active := map[bool]float64{}, map[bool]float64{}
		claims := map[string]bool{}
		for _, v := range s.Pods {
			desired[v.Static]++
			if !v.State.Final() {
				active[v.Static]++
			}
			if v.Static {
				mirrored++
			}
			if v.Sandbox != nil {
				sandboxes++
			}
			for _, c := range v.Containers {
				switch {
				case c.Running:
					running++
				case c.ID != "":
					exited++
				}
			}
			if v.Volumes != nil && hasClaim(v.Pod) {
				for _, st := range v.Volumes.Stats() {
					key := v.Pod.Namespace + "/" + st.Claim
					if st.Claim == "" || claims[key] {
						continue
					}
					claims[key] = true
					for _, f := range volumeFamilies {
						ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, float64(f.read(st)), v.Pod.Namespace, st.Claim)
					}
				}
			}
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		gauge(runningPods, sandboxes)
		gauge(runningCtrs, running, "running")
		gauge(runningCtrs, exited, "exited")
		gauge(mirrorPods, mirrored)
		for static, label := range map[bool]string{false: "", true: "true"} {
			gauge(desiredPods, desired[static], label)
			gauge(activePods, active[static], label)
		}
	})
}

func hasClaim(p *v1.Pod) bool {
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return true
		}
	}
	return false
}
