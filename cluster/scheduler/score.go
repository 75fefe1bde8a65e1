package scheduler

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// top is the best score that a scorer gives.
const top = 100

// scorer prefers some nodes to others. It fills scores, one for each of nodes,
// with 0 to top; all zero if it has no opinion.
type scorer struct {
	name   string
	weight int64
	score  func(p *podInfo, s *state, nodes []*nodeInfo, scores []int64)
}

var scorers = []scorer{
	{"LeastAllocated", 1, leastAllocated},
	{"BalancedAllocation", 1, balancedAllocation},
	{"NodeAffinity", 2, preferredNodeAffinity},
	{"TaintToleration", 3, preferredTaints},
	{"SpreadByController", 2, spreadByOwner},
	{"PodTopologySpread", 2, preferredSpread},
	{"InterPodAffinity", 2, preferredPodAffinity},
}

// leastAllocated prefers nodes with much room left.
func leastAllocated(p *podInfo, _ *state, nodes []*nodeInfo, scores []int64) {
	for i, n := range nodes {
		scores[i] = (room(n.typicalCPU+p.typicalCPU, n.allocatable.cpu) + room(n.typicalMemory+p.typicalMemory, n.allocatable.memory)) / 2
	}
}

func room(used, have int64) int64 {
	if have <= 0 || used > have {
		return 0
	}
	return (have - used) * top / have
}

// balancedAllocation prefers nodes where cpu and memory would be used to the same
// share, so that neither is left over without the other.
func balancedAllocation(p *podInfo, _ *state, nodes []*nodeInfo, scores []int64) {
	for i, n := range nodes {
		cpu := share(n.typicalCPU+p.typicalCPU, n.allocatable.cpu)
		memory := share(n.typicalMemory+p.typicalMemory, n.allocatable.memory)
		scores[i] = int64((1 - math.Abs(cpu-memory)/2) * top)
	}
}

func share(used, have int64) float64 {
	if have <= 0 {
		return 1
	}
	return min(1, float64(used)/float64(have))
}

// preferredNodeAffinity prefers what the pod's preferred node affinity says.
func preferredNodeAffinity(p *podInfo, _ *state, nodes []*nodeInfo, scores []int64) {
	a := p.pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return
	}
	terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		return // a wish that cannot be read is not a reason to keep a pod waiting
	}
	for i, n := range nodes {
		scores[i] = terms.Score(n.node)
	}
	stretch(scores)
}

// preferredTaints avoids nodes with taints that say PreferNoSchedule.
func preferredTaints(p *podInfo, _ *state, nodes []*nodeInfo, scores []int64) {
	any := false
	for i, n := range nodes {
		for t := range n.node.Spec.Taints {
			taint := &n.node.Spec.Taints[t]
			if taint.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(p.pod.Spec.Tolerations, taint) {
				scores[i]--
				any = true
			}
		}
	}
	if any {
		stretch(scores)
	}
}

// spreadByOwner prefers nodes with few pods of the same controller.
func spreadByOwner(p *podInfo, _ *state, nodes []*nodeInfo, scores []int64) {
	if p.owner == "" {
		return
	}
	for i, n := range nodes {
		scores[i] = -int64(n.perOwner[p.owner])
	}
	stretch(scores)
}

// preferredSpread prefers domains with few pods, where the pod's topology spread
// constraints say ScheduleAnyway.
func preferredSpread(p *podInfo, s *state, nodes []*nodeInfo, scores []int64) {
	found := false
	for c := range p.spread {
		constraint := &p.spread[c]
		if constraint.hard {
			continue
		}
		found = true
		counts := s.spreadCounts(p, constraint, []*spreadConstraint{constraint})
		var most int64
		for _, n := range counts {
			most = max(most, n)
		}
		for i, n := range nodes {
			if value, ok := n.node.Labels[constraint.topologyKey]; ok {
				scores[i] -= counts[value]
			} else {
				scores[i] -= most + 1 // nowhere is worse than anywhere
			}
		}
	}
	if found {
		stretch(scores)
	}
}

// preferredPodAffinity adds up the preferred terms of the pod towards others, and
// of others towards the pod.
func preferredPodAffinity(p *podInfo, s *state, nodes []*nodeInfo, scores []int64) {
	weights := map[domain]int64{}
	add := func(at *nodeInfo, t *affinityTerm, target *corev1.Pod, weight int64) {
		if !t.matches(target, s.namespaceLabels) {
			return
		}
		if d, ok := domainOf(at.node, t.topologyKey); ok {
			weights[d] += weight
		}
	}
	if len(p.preferredAffinity)+len(p.preferredAntiAffinity) > 0 {
		for _, n := range s.nodes {
			for _, other := range n.pods {
				for i := range p.preferredAffinity {
					add(n, &p.preferredAffinity[i].affinityTerm, other.pod, p.preferredAffinity[i].weight)
				}
				for i := range p.preferredAntiAffinity {
					add(n, &p.preferredAntiAffinity[i].affinityTerm, other.pod, -p.preferredAntiAffinity[i].weight)
				}
			}
		}
	}
	for uid, other := range s.withAffinity {
		n := s.byName[s.where[uid]]
		for i := range other.preferredAffinity {
			add(n, &other.preferredAffinity[i].affinityTerm, p.pod, other.preferredAffinity[i].weight)
		}
		for i := range other.preferredAntiAffinity {
			add(n, &other.preferredAntiAffinity[i].affinityTerm, p.pod, -other.preferredAntiAffinity[i].weight)
		}
		for i := range other.affinity { // who needs to be near p draws p a little
			add(n, &other.affinity[i], p.pod, 1)
		}
	}
	if len(weights) == 0 {
		return
	}
	for i, n := range nodes {
		for k, v := range n.node.Labels {
			scores[i] += weights[domain{k, v}]
		}
	}
	stretch(scores)
}

// stretch maps scores to 0..top, keeping their order; all become 0 if they are
// equal.
func stretch(scores []int64) {
	if len(scores) == 0 {
		return
	}
	low, high := scores[0], scores[0]
	for _, v := range scores {
		low, high = min(low, v), max(high, v)
	}
	for i := range scores {
		if high == low {
			scores[i] = 0
			continue
		}
		scores[i] = (scores[i] - low) * top / (high - low)
	}
}
