package nodelifecycle

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How many nodes may begin to lose their pods, as upstream has it: one at once,
// and then one every ten seconds in each zone; where most of a large zone is not
// ready, one every hundred seconds, of a small one none.
const (
	normalInterval  = 10 * time.Second
	reducedInterval = 100 * time.Second
	largeZone       = 50   // more nodes than these are many
	unhealthyShare  = 0.55 // more than this share is most
)

// Node says of a node what its zone is judged by.
type health struct {
	zone  string
	ready bool
}

// verdict is how fast nodes of a zone may begin to lose their pods.
type verdict struct {
	interval time.Duration // between two nodes; 0: none may
	reason   string        // why it is not the usual interval
}

// judge looks at all nodes. A cluster of which most is not ready evicts nothing
// at all: it is more likely that this server is cut off than that all others are
// dead. A zone that is dead as a whole is evicted like any other node, if most of
// the cluster works.
func judge(nodes []health) (zones map[string]verdict, all verdict) {
	type count struct{ bad, total int }
	counts := map[string]*count{}
	var sum count
	for _, n := range nodes {
		c := counts[n.zone]
		if c == nil {
			c = &count{}
			counts[n.zone] = c
		}
		c.total++
		sum.total++
		if !n.ready {
			c.bad++
			sum.bad++
		}
	}
	most := func(c count) bool { return float64(c.bad) > unhealthyShare*float64(c.total) }
	all = verdict{interval: normalInterval}
	if most(sum) {
		all = verdict{reason: fmt.Sprintf("%d of %d nodes are not ready", sum.bad, sum.total)}
	}
	zones = map[string]verdict{}
	for zone, c := range counts {
		v := verdict{interval: normalInterval}
		switch {
		case all.interval == 0:
			v = all
		case c.bad == c.total, !most(*c):
		case c.total > largeZone:
			v = verdict{interval: reducedInterval, reason: fmt.Sprintf("%d of %d nodes of zone %q are not ready: evictions are slowed down", c.bad, c.total, zone)}
		default:
			v = verdict{reason: fmt.Sprintf("%d of %d nodes of zone %q are not ready", c.bad, c.total, zone)}
		}
		zones[zone] = v
	}
	return zones, all
}

// limiter lets nodes begin to lose their pods. Its caller holds a lock.
type limiter struct {
	all   verdict
	zones map[string]verdict
	next  map[string]time.Time // when the next node of a zone may; absent: now
}

// set takes new verdicts and reports whether any differs.
func (l *limiter) set(zones map[string]verdict, all verdict, now time.Time) bool {
	changed := l.all != all
	for zone, v := range zones {
		if old, ok := l.zones[zone]; ok && old.interval != v.interval {
			changed = true
			switch next, ok := l.next[zone]; {
			case old.interval == 0: // after a freeze the first may at once again
				delete(l.next, zone)
			case v.interval > 0 && ok && next.After(now.Add(v.interval)): // a wait that began under a slower rate is cut
				l.next[zone] = now.Add(v.interval)
			}
		}
	}
	l.zones, l.all = zones, all
	return changed
}

// frozen reports whether no node of a zone may lose its pods.
func (l *limiter) frozen(zone string) bool {
	v, ok := l.zones[zone]
	return ok && v.interval == 0
}

// take asks whether a node of a zone may now; undo gives back what was taken,
// else wait says when to ask again. A frozen zone has no time: it is told by set.
func (l *limiter) take(zone string, now time.Time) (undo func(), wait time.Duration) {
	if next := l.next[zone]; now.Before(next) {
		return nil, next.Sub(now)
	}
	if l.next == nil {
		l.next = map[string]time.Time{}
	}
	before, had := l.next[zone]
	l.next[zone] = now.Add(cmp.Or(l.zones[zone].interval, normalInterval))
	return func() {
		if had {
			l.next[zone] = before
		} else {
			delete(l.next, zone)
		}
	}, 0
}

// reasons are why evictions are frozen or slow, each once; frozen ones first.
func (l *limiter) reasons() (frozen bool, text string) {
	if l.all.reason != "" {
		return true, l.all.reason
	}
	var stopped, slow []string
	for _, zone := range slices.Sorted(maps.Keys(l.zones)) {
		switch v := l.zones[zone]; {
		case v.reason == "":
		case v.interval == 0:
			stopped = append(stopped, v.reason)
		default:
			slow = append(slow, v.reason)
		}
	}
	return len(stopped) > 0, strings.Join(append(stopped, slow...), "; ")
}

// zoneOf names a node's zone; "" is that of nodes without labels.
func zoneOf(node *corev1.Node) string {
	region, zone := node.Labels[corev1.LabelTopologyRegion], node.Labels[corev1.LabelTopologyZone]
	if region == "" {
		return zone
	}
	return region + "/" + zone
}

// EvictionStatus says whether pods of lost nodes are evicted.
type EvictionStatus struct {
	// Frozen: of some or all nodes that are not ready, no pod is evicted.
	Frozen bool `json:"frozen"`
	// Reason why they are frozen or slowed down.
	Reason string `json:"reason,omitempty"`
	// Since when the reason holds.
	Since time.Time `json:"since,omitzero"`
	// Waiting is how many nodes that are not ready wait until their pods may be
	// evicted.
	Waiting int `json:"waiting"`
}

// Board shows the EvictionStatus of the running term. There is one for each
// server; only the leader's is filled. Safe for concurrent use.
type Board struct {
	mu     sync.Mutex
	filled bool
	status EvictionStatus
}

// Status returns the status; false where no controller runs, which is everywhere
// but on the leader.
func (b *Board) Status() (EvictionStatus, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status, b.filled
}

func (b *Board) set(s EvictionStatus, filled bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status, b.filled = s, filled
}
