package scheduler

import (
	corev1 "k8s.io/api/core/v1"
)

// domain is one value of a topology key: one node, one zone.
type domain struct{ key, value string }

func domainOf(node *corev1.Node, key string) (domain, bool) {
	if node == nil {
		return domain{}, false
	}
	v, ok := node.Labels[key]
	return domain{key, v}, ok
}

// podAffinityFilter keeps pods together and apart as their required pod affinity
// and anti-affinity say, and away from pods that do not want them near.
func podAffinityFilter(p *podInfo, s *state) check {
	near := s.affinityDomains(p)
	apart := s.antiAffinityDomains(p)
	unwelcome := s.unwelcomeDomains(p)
	if len(p.affinity) == 0 && len(apart) == 0 && len(unwelcome) == 0 {
		return nil
	}
	// The first pod of a group that wants to be together must be let in.
	first := len(p.affinity) > 0 && len(near) == 0 && s.matchesOwnTerms(p)
	return func(n *nodeInfo) []string {
		for i := range p.affinity {
			d, ok := domainOf(n.node, p.affinity[i].topologyKey)
			if !ok || !first && near[d] == 0 {
				return []string{"node(s) didn't match pod affinity rules"}
			}
		}
		if isIn(n.node, apart) {
			return []string{"node(s) didn't match pod anti-affinity rules"}
		}
		if isIn(n.node, unwelcome) {
			return []string{"node(s) didn't satisfy existing pods anti-affinity rules"}
		}
		return nil
	}
}

// isIn reports whether node lies in one of domains.
func isIn(node *corev1.Node, domains map[domain]int) bool {
	if len(domains) == 0 {
		return false
	}
	for k, v := range node.Labels {
		if domains[domain{k, v}] > 0 {
			return true
		}
	}
	return false
}

// affinityDomains counts, per domain of p's affinity terms, the pods that match
// all of these terms.
func (s *state) affinityDomains(p *podInfo) map[domain]int {
	if len(p.affinity) == 0 {
		return nil
	}
	out := map[domain]int{}
	for _, n := range s.nodes {
		for _, other := range n.pods {
			if !s.matchesAll(p.affinity, other.pod) {
				continue
			}
			for i := range p.affinity {
				if d, ok := domainOf(n.node, p.affinity[i].topologyKey); ok {
					out[d]++
				}
			}
		}
	}
	return out
}

func (s *state) matchesAll(terms []affinityTerm, pod *corev1.Pod) bool {
	for i := range terms {
		if !terms[i].matches(pod, s.namespaceLabels) {
			return false
		}
	}
	return true
}

func (s *state) matchesOwnTerms(p *podInfo) bool { return s.matchesAll(p.affinity, p.pod) }

// antiAffinityDomains holds the domains with a pod that p wants to be away from.
func (s *state) antiAffinityDomains(p *podInfo) map[domain]int {
	if len(p.antiAffinity) == 0 {
		return nil
	}
	out := map[domain]int{}
	for _, n := range s.nodes {
		for _, other := range n.pods {
			for i := range p.antiAffinity {
				t := &p.antiAffinity[i]
				if !t.matches(other.pod, s.namespaceLabels) {
					continue
				}
				if d, ok := domainOf(n.node, t.topologyKey); ok {
					out[d]++
				}
			}
		}
	}
	return out
}

// unwelcomeDomains holds the domains of pods that want p to be away from them.
func (s *state) unwelcomeDomains(p *podInfo) map[domain]int {
	var out map[domain]int
	for uid, other := range s.withAffinity {
		for i := range other.antiAffinity {
			t := &other.antiAffinity[i]
			if !t.matches(p.pod, s.namespaceLabels) {
				continue
			}
			if d, ok := domainOf(s.byName[s.where[uid]].node, t.topologyKey); ok {
				if out == nil {
					out = map[domain]int{}
				}
				out[d]++
			}
		}
	}
	return out
}
