package shutdown

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// SystemCritical is the lowest priority of pods that the cluster itself needs.
const SystemCritical = 2_000_000_000

// Priorities of the classes that every cluster has. Pods of manifests name them,
// but no API server fills in the number.
var systemClasses = map[string]int32{"system-cluster-critical": SystemCritical, "system-node-critical": SystemCritical + 1000}

// Period is the time for pods from a priority on, up to the next Period's.
type Period struct {
	Priority int32
	Grace    time.Duration // whole seconds
}

// Periods are in the order of their priorities. None: pods get no time.
type Periods []Period

// Total is how long all pods together take at most.
func (p Periods) Total() (sum time.Duration) {
	for _, period := range p {
		sum += period.Grace
	}
	return sum
}

// TwoPeriods are those of a time for all pods, the last part of which is for
// critical ones.
func TwoPeriods(total, critical time.Duration) (Periods, error) {
	switch {
	case total < 0 || critical < 0:
		return nil, fmt.Errorf("%s and %s: want no negative times", total, critical)
	case critical > total:
		return nil, fmt.Errorf("%s for critical pods are more than the %s for all", critical, total)
	case total%time.Second != 0 || critical%time.Second != 0:
		return nil, fmt.Errorf("%s and %s: want whole seconds", total, critical)
	case total == 0:
		return nil, nil
	}
	return Periods{{0, total - critical}, {SystemCritical, critical}}, nil
}

// ParsePeriods reads PRIORITY=TIME pairs, such as 0=20s and 100000=1m.
func ParsePeriods(list []string) (Periods, error) {
	var out Periods
	for _, s := range list {
		number, text, ok := strings.Cut(s, "=")
		priority, err := strconv.ParseInt(number, 10, 32)
		if !ok || err != nil {
			return nil, fmt.Errorf("%q: want PRIORITY=TIME, such as 100000=30s", s)
		}
		grace, err := time.ParseDuration(text)
		if err != nil || grace < 0 || grace%time.Second != 0 {
			return nil, fmt.Errorf("%q: want a time of whole seconds, such as 30s", s)
		}
		if slices.ContainsFunc(out, func(p Period) bool { return p.Priority == int32(priority) }) {
			return nil, fmt.Errorf("%q: there are two times for priority %d", s, priority)
		}
		out = append(out, Period{int32(priority), grace})
	}
	slices.SortFunc(out, func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	return out, nil
}

// within shortens the periods in proportion so that they fit into most.
func (p Periods) within(most time.Duration) Periods {
	total := p.Total()
	if total <= most {
		return p
	}
	out := slices.Clone(p)
	for i := range out {
		out[i].Grace = (out[i].Grace / time.Second * most / (total / time.Second)).Truncate(time.Second)
	}
	return out
}

// group is the pods of one period.
type group struct {
	Period
	pods []*v1.Pod
}

// groups says which pods end when. A pod below the lowest priority belongs to the
// first period.
func (p Periods) groups(pods []*v1.Pod) []group {
	out := make([]group, len(p))
	for i, period := range p {
		out[i].Period = period
	}
	for _, pod := range pods {
		at := 0
		for i := range out {
			if out[i].Priority <= priority(pod) {
				at = i
			}
		}
		out[at].pods = append(out[at].pods, pod)
	}
	return out
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return systemClasses[p.Spec.PriorityClassName]
}

// grace is the time in seconds that a pod gets in its group.
func (g group) grace(p *v1.Pod) int64 {
	most := int64(g.Grace / time.Second)
	if own := p.Spec.TerminationGracePeriodSeconds; own != nil && *own < most {
		return max(0, *own)
	}
	return most
}
