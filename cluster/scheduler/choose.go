package scheduler

import (
	"math/rand/v2"
)

const (
	// enoughNodes is how many nodes that fit are always looked for.
	enoughNodes = 100
	// leastShare is the smallest share of a large cluster that is looked at, in
	// percent.
	leastShare = 5
)

// wantedNodes is the number of fitting nodes after which the search may stop: all
// in small clusters, a shrinking share in large ones, where the best of hundreds
// is as good as the best of thousands.
func wantedNodes(total int) int {
	if total <= enoughNodes {
		return total
	}
	share := max(leastShare, 50-total/125)
	return max(enoughNodes, total*share/100)
}

// refusals say why a pod fits nowhere.
type refusals struct {
	nodes   int            // how many were looked at
	reasons map[string]int // reason -> number of nodes
	whole   string         // why no node was looked at, "" if they were
	wakes   event          // what may change that
}

// chooser holds buffers that are used again for every pod.
type chooser struct {
	checks []check
	wakes  []event
	fits   []*nodeInfo
	totals []int64
	scores []int64
}

// choose picks the best node for p, or tells why there is none. The state's lock
// is held.
func (c *chooser) choose(p *podInfo, s *state) (*nodeInfo, *refusals) {
	c.checks, c.wakes, c.fits = c.checks[:0], c.wakes[:0], c.fits[:0]
	r := &refusals{}
	if len(p.claimKeys) > 0 {
		if p.claims, r.whole = s.volumes.claimsOf(p.pod); r.whole != "" {
			r.nodes, r.wakes = len(s.nodes), volumeChanged
			return nil, r
		}
	}
	for i := range filters {
		if f := filters[i].prepare(p, s); f != nil {
			c.checks, c.wakes = append(c.checks, f), append(c.wakes, filters[i].wakes)
		}
	}
	c.search(p, s, r)
	if len(c.fits) == 0 {
		r.nodes = len(s.nodes)
		if r.nodes == 0 {
			r.wakes |= nodeAdded
		}
		return nil, r
	}
	return c.best(p, s), nil
}

// search fills c.fits. It goes round the nodes from where the last search ended.
func (c *chooser) search(p *podInfo, s *state, r *refusals) {
	if names, ok := pinnedTo(p.pod); ok {
		c.searchPinned(names, s, r)
		return
	}
	want := wantedNodes(len(s.nodes))
	for range len(s.nodes) {
		if s.next >= len(s.nodes) {
			s.next = 0
		}
		n := s.nodes[s.next]
		s.next++
		if c.fit(n, r) {
			if c.fits = append(c.fits, n); len(c.fits) >= want {
				return
			}
		}
	}
}

// searchPinned looks at the named nodes alone; every other node is refused by
// the affinity that names them.
func (c *chooser) searchPinned(names []string, s *state, r *refusals) {
	seen := 0
	for _, name := range names {
		n, ok := s.byName[name]
		if !ok || n.node == nil {
			continue
		}
		seen++
		if c.fit(n, r) {
			c.fits = append(c.fits, n)
		}
	}
	if others := len(s.nodes) - seen; others > 0 && len(c.fits) == 0 {
		r.count("node(s) didn't match Pod's node affinity/selector", others)
		r.wakes |= nodeAdded
	}
	if seen == 0 {
		r.wakes |= nodeAdded
	}
}

func (c *chooser) fit(n *nodeInfo, r *refusals) bool {
	for i, f := range c.checks {
		reasons := f(n)
		if len(reasons) == 0 {
			continue
		}
		for _, reason := range reasons {
			r.count(reason, 1)
		}
		r.wakes |= c.wakes[i]
		return false
	}
	return true
}

func (r *refusals) count(reason string, n int) {
	if r.reasons == nil {
		r.reasons = map[string]int{}
	}
	r.reasons[reason] += n
}

// best scores c.fits; equals are drawn by lot.
func (c *chooser) best(p *podInfo, s *state) *nodeInfo {
	if len(c.fits) == 1 {
		return c.fits[0]
	}
	c.totals = zeroed(c.totals, len(c.fits))
	for i := range scorers {
		c.scores = zeroed(c.scores, len(c.fits))
		scorers[i].score(p, s, c.fits, c.scores)
		for j, v := range c.scores {
			c.totals[j] += v * scorers[i].weight
		}
	}
	at, equals := 0, 1
	for i := 1; i < len(c.totals); i++ {
		switch {
		case c.totals[i] > c.totals[at]:
			at, equals = i, 1
		case c.totals[i] == c.totals[at]:
			if equals++; rand.IntN(equals) == 0 {
				at = i
			}
		}
	}
	return c.fits[at]
}

func zeroed(buf []int64, n int) []int64 {
	if cap(buf) < n {
		return make([]int64, n)
	}
	buf = buf[:n]
	clear(buf)
	return buf
}
