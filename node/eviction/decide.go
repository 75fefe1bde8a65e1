package eviction

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Observation is how much of something there is.
type Observation struct{ Available, Capacity int64 }

// Observations is what was measured at one time; a signal that is missing can't be
// measured here, and its thresholds are not met.
type Observations map[Signal]Observation

// State is what has to be remembered from one decision to the next. The zero value
// is that of a node that starts.
type State struct {
	at   time.Time
	obs  Observations
	met  map[Threshold]time.Time            // since when, those within their grace period too
	seen map[v1.NodeConditionType]time.Time // when last
}

// Decision is what to do.
type Decision struct {
	Conditions []v1.NodeConditionType // that the Node says, in the order of their names
	Starved    []Threshold            // to be acted upon, the most urgent first
	Again      time.Duration          // when to look again
}

// Bounds of the time between two looks. Between them it is the half of what a signal
// needs to reach its threshold, if it goes on as between the last two.
const (
	lookMost  = 2 * time.Second // a fast disk writes gigabytes in kubelet's ten seconds
	lookLeast = 500 * time.Millisecond
	// near a threshold is within so many hundredths of the capacity.
	near      = 4
	lookNear  = time.Second
	graceTick = time.Second
)

// Decide says what follows from an observation. It has no side effects; times must
// come from one clock that does not jump.
func (c *Config) Decide(s State, now time.Time, obs Observations) (State, Decision) {
	next := State{at: now, obs: obs, met: map[Threshold]time.Time{}, seen: map[v1.NodeConditionType]time.Time{}}
	d := Decision{Again: lookMost}
	for k, v := range s.seen {
		next.seen[k] = v
	}
	for _, t := range c.Thresholds {
		o, ok := obs[t.Signal]
		if !ok {
			continue
		}
		since, before := s.met[t]
		acted := before && now.Sub(since) >= t.Grace
		if !t.met(o, acted) {
			d.Again = min(d.Again, s.approach(t, now, o))
			continue
		}
		if !before {
			since = now
		}
		next.met[t] = since
		next.seen[t.Signal.Condition()] = now
		if left := t.Grace - now.Sub(since); left <= 0 {
			d.Starved = append(d.Starved, t)
			d.Again = min(d.Again, lookNear)
		} else {
			d.Again = min(d.Again, max(graceTick, left))
		}
	}
	for cond, at := range next.seen {
		left := c.Transition - now.Sub(at)
		if at != now && left <= 0 {
			delete(next.seen, cond)
			continue
		}
		d.Conditions = append(d.Conditions, cond)
		if at != now {
			d.Again = min(d.Again, max(lookLeast, left))
		}
	}
	slices.Sort(d.Conditions)
	slices.SortStableFunc(d.Starved, func(a, b Threshold) int {
		if a.Hard() != b.Hard() {
			if a.Hard() {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Signal.rank(), b.Signal.rank())
	})
	return next, d
}

// met says whether too little is available. A threshold that was acted upon stays
// met until its minimum reclaim is there too.
func (t Threshold) met(o Observation, acted bool) bool {
	limit := t.Value.Of(o.Capacity)
	if acted {
		limit += t.Reclaim.Of(o.Capacity)
	}
	return o.Available < limit
}

// approach is when to look again at a threshold that is not met.
func (s State) approach(t Threshold, now time.Time, o Observation) time.Duration {
	margin := o.Available - t.Value.Of(o.Capacity)
	again := lookMost
	if margin < o.Capacity/100*near {
		again = lookNear
	}
	if old, ok := s.obs[t.Signal]; ok {
		lost, passed := old.Available-o.Available, now.Sub(s.at)
		if lost > 0 && passed > 0 {
			left := float64(margin) / float64(lost) * float64(passed) / 2
			if left < float64(again) {
				again = max(lookLeast, time.Duration(left))
			}
		}
	}
	return again
}

// Relieved says, after something was reclaimed, that no threshold of those is met any
// more, with its minimum reclaim, so that no pod has to go.
func Relieved(thresholds []Threshold, obs Observations) bool {
	for _, t := range thresholds {
		if o, ok := obs[t.Signal]; ok && t.met(o, true) {
			return false
		}
	}
	return true
}

// Urgent says that a hard threshold is met.
func (c *Config) Urgent(obs Observations) bool {
	return slices.ContainsFunc(c.Thresholds, func(t Threshold) bool {
		o, ok := obs[t.Signal]
		return ok && t.Hard() && t.met(o, false)
	})
}
