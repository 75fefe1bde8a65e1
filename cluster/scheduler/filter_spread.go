package scheduler

import "math"

// spreadFilter keeps pods evenly spread over domains where the pod's topology
// spread constraints say DoNotSchedule.
func spreadFilter(p *podInfo, s *state) check {
	var hard []*spreadConstraint
	for i := range p.spread {
		if p.spread[i].hard {
			hard = append(hard, &p.spread[i])
		}
	}
	if len(hard) == 0 {
		return nil
	}
	counts := make([]map[string]int64, len(hard))
	least := make([]int64, len(hard))
	for i, c := range hard {
		counts[i] = s.spreadCounts(p, c, hard)
		least[i] = leastOf(counts[i], c.minDomains)
	}
	return func(n *nodeInfo) []string {
		for i, c := range hard {
			value, ok := n.node.Labels[c.topologyKey]
			if !ok {
				return []string{"node(s) didn't match pod topology spread constraints (missing required label)"}
			}
			skew := counts[i][value] - least[i]
			if c.matchesSelf {
				skew++
			}
			if skew > c.maxSkew {
				return []string{"node(s) didn't match pod topology spread constraints"}
			}
		}
		return nil
	}
}

// spreadCounts counts the pods that c selects per domain, among the nodes that
// have the keys of all constraints and that c's policies include.
func (s *state) spreadCounts(p *podInfo, c *spreadConstraint, all []*spreadConstraint) map[string]int64 {
	match := nodeAffinity(p.pod)
	counts := map[string]int64{}
	for _, n := range s.nodes {
		if !hasKeys(n, all) ||
			c.honorNode && match != nil && !match(n.node) ||
			c.honorTaints && untolerated(p.pod, n.node) {
			continue
		}
		value := n.node.Labels[c.topologyKey]
		counts[value] += 0 // an empty domain is one too
		for _, other := range n.pods {
			if c.counts(other.pod) {
				counts[value]++
			}
		}
	}
	return counts
}

func hasKeys(n *nodeInfo, all []*spreadConstraint) bool {
	for _, c := range all {
		if _, ok := n.node.Labels[c.topologyKey]; !ok {
			return false
		}
	}
	return true
}

// leastOf is the smallest count; 0 while there are fewer domains than wanted.
func leastOf(counts map[string]int64, minDomains int64) int64 {
	if int64(len(counts)) < minDomains {
		return 0
	}
	least := int64(math.MaxInt64)
	for _, n := range counts {
		least = min(least, n)
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}
