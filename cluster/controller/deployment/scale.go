package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// step gives a ReplicaSet a new size.
type step struct {
	rs *appsv1.ReplicaSet
	to int32
}

// wanted is a Deployment's size; the API defaults it to 1.
func wanted(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

// fenceposts are maxSurge, rounded up, and maxUnavailable, rounded down, as
// numbers of pods; one of them is at least 1, or nothing could move.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || r == nil {
		return 0, 0
	}
	surge = scaled(r.MaxSurge, wanted(d), true)
	unavailable = scaled(r.MaxUnavailable, wanted(d), false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func scaled(v *intstr.IntOrString, total int32, up bool) int32 {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, int(total), up)
	if err != nil {
		return 0 // refused by validation
	}
	return int32(n)
}

// maxUnavailable is how many pods may be missing without the Deployment counting
// as unavailable.
func maxUnavailable(d *appsv1.Deployment) int32 {
	if wanted(d) == 0 {
		return 0
	}
	_, n := fenceposts(d)
	return min(n, wanted(d))
}

// sizeOfNew is what the new ReplicaSet may grow to now; current is its size.
func sizeOfNew(d *appsv1.Deployment, current int32, others []*appsv1.ReplicaSet) int32 {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return wanted(d)
	}
	surge, _ := fenceposts(d)
	room := wanted(d) + surge - current - sizes(others)
	if room <= 0 {
		return current
	}
	return current + min(room, wanted(d)-current)
}

// growNew is the first half of a rolling step: the new ReplicaSet grows as far as
// maxSurge lets it.
func growNew(d *appsv1.Deployment, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) (step, bool) {
	switch now := size(newer); {
	case now == wanted(d):
		return step{}, false
	case now > wanted(d):
		return step{newer, wanted(d)}, true
	default:
		to := sizeOfNew(d, now, old)
		return step{newer, to}, to != now
	}
}

// shrinkOld is the second half: old pods go as far as maxUnavailable lets them,
// those that do not work anyway first.
func shrinkOld(d *appsv1.Deployment, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []step {
	if sizes(old) == 0 {
		return nil
	}
	_, unavailable := fenceposts(d)
	least := wanted(d) - unavailable
	newMissing := size(newer) - available(newer)
	room := sizes(old) + size(newer) - least - newMissing
	if room <= 0 {
		return nil
	}
	old = slices.Clone(old)
	slices.SortStableFunc(old, byAge)
	to := map[*appsv1.ReplicaSet]int32{}
	for _, rs := range old { // pods that are not available are no loss
		n := min(room, size(rs)-available(rs))
		if n > 0 {
			room -= n
			to[rs] = size(rs) - n
		}
	}
	spare := available(newer) - least
	for _, rs := range old {
		spare += available(rs)
	}
	for _, rs := range old {
		now, touched := to[rs]
		if !touched {
			now = size(rs)
		}
		if n := min(now, spare); n > 0 {
			spare -= n
			to[rs] = now - n
		}
	}
	var steps []step
	for _, rs := range old {
		if n, ok := to[rs]; ok {
			steps = append(steps, step{rs, n})
		}
	}
	return steps
}

// proportional spreads a change of the Deployment's size over its ReplicaSets.
func proportional(d *appsv1.Deployment, newer *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []step {
	var active []*appsv1.ReplicaSet
	for _, rs := range append(slices.Clone(old), newer) {
		if rs != nil && size(rs) > 0 {
			active = append(active, rs)
		}
	}
	if len(active) <= 1 {
		only := newer
		if len(active) == 1 {
			only = active[0]
		} else if only == nil && len(old) > 0 {
			only = slices.MaxFunc(old, byAge)
		}
		if only == nil {
			return nil
		}
		return []step{{only, wanted(d)}}
	}
	if newer != nil && saturated(d, newer) {
		steps := []step{}
		for _, rs := range active {
			if rs != newer {
				steps = append(steps, step{rs, 0})
			}
		}
		return steps
	}
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return shares(d, active)
}

// shares gives each of active its part of what is to be added or removed.
func shares(d *appsv1.Deployment, active []*appsv1.ReplicaSet) []step {
	surge, _ := fenceposts(d)
	allowed := int32(0)
	if wanted(d) > 0 {
		allowed = wanted(d) + surge
	}
	change := allowed - sizes(active)
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		age := byAge(b, a) // growing: newer first among equals
		if change < 0 {
			age = byAge(a, b) // shrinking: older first
		}
		return cmp.Or(cmp.Compare(size(b), size(a)), age)
	})
	left := change
	steps := make([]step, len(active))
	for i, rs := range active {
		part := int32(0)
		if change != 0 {
			part = share(d, rs, allowed)
			if change > 0 {
				part = min(max(part, 0), left)
			} else {
				part = max(min(part, 0), left)
			}
		}
		left -= part
		steps[i] = step{rs, size(rs) + part}
	}
	steps[0].to = max(0, steps[0].to+left) // rounding goes to the largest
	return steps
}

// share is how much rs changes if it keeps its part of the whole.
func share(d *appsv1.Deployment, rs *appsv1.ReplicaSet, allowed int32) int32 {
	if wanted(d) == 0 {
		return -size(rs)
	}
	before, ok := number(rs, maxKey)
	if !ok || before == 0 {
		before = d.Status.Replicas
	}
	if before == 0 {
		return 0
	}
	return int32(math.Round(float64(size(rs))*float64(allowed)/float64(before))) - size(rs)
}

// saturated reports whether the new ReplicaSet alone is all that is wanted.
func saturated(d *appsv1.Deployment, rs *appsv1.ReplicaSet) bool {
	desired, ok := number(rs, desiredKey)
	return ok && size(rs) == wanted(d) && desired == wanted(d) && available(rs) == wanted(d)
}

func number(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[key], 10, 32)
	return int32(n), err == nil
}

func sizes(list []*appsv1.ReplicaSet) int32 {
	var sum int32
	for _, rs := range list {
		sum += size(rs)
	}
	return sum
}

// available is the number of available pods that rs keeps: its status may still
// count some that its size no longer allows.
func available(rs *appsv1.ReplicaSet) int32 {
	if rs == nil {
		return 0
	}
	return min(rs.Status.AvailableReplicas, size(rs))
}
