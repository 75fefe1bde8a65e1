package deployment

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

const (
	// revisionKey numbers templates in the order in which they were rolled out;
	// kubectl rollout history and undo read it.
	revisionKey = "deployment.kubernetes.io/revision"
	// pastRevisionsKey lists the numbers that a ReplicaSet had before.
	pastRevisionsKey = "deployment.kubernetes.io/revision-history"
	// desiredKey and maxKey hold the Deployment's size, without and with surge,
	// at the time a ReplicaSet was last scaled.
	desiredKey = "deployment.kubernetes.io/desired-replicas"
	maxKey     = "deployment.kubernetes.io/max-replicas"
)

// notInherited are the annotations that a ReplicaSet does not take over.
var notInherited = map[string]bool{
	corev1.LastAppliedConfigAnnotation:  true,
	revisionKey:                         true,
	pastRevisionsKey:                    true,
	desiredKey:                          true,
	maxKey:                              true,
	"deprecated.deployment.rollback.to": true,
}

// revisionOf is a ReplicaSet's number; 0 if it has none.
func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[revisionKey], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// nextRevision is one more than all of old have.
func nextRevision(old []*appsv1.ReplicaSet) int64 {
	var most int64
	for _, rs := range old {
		most = max(most, revisionOf(rs))
	}
	return most + 1
}

// annotationsFor are those of a new ReplicaSet, or of one that is new again: the
// Deployment's, and the revision, which only grows.
func annotationsFor(d *appsv1.Deployment, have map[string]string, revision int64) map[string]string {
	out := maps.Clone(have)
	if out == nil {
		out = map[string]string{}
	}
	for k, v := range d.Annotations {
		if !notInherited[k] {
			out[k] = v
		}
	}
	before := out[revisionKey]
	old, err := strconv.ParseInt(before, 10, 64)
	if err != nil {
		before = ""
	}
	if before != "" && old >= revision {
		return out
	}
	out[revisionKey] = strconv.FormatInt(revision, 10)
	if before != "" {
		out[pastRevisionsKey] = addPast(out[pastRevisionsKey], before)
	}
	return out
}

// addPast appends to a list of revisions, and forgets the oldest of a long one.
func addPast(list, revision string) string {
	const most = 2000
	if list == "" {
		return revision
	}
	list += "," + revision
	for len(list) > most {
		_, rest, ok := strings.Cut(list, ",")
		if !ok {
			return ""
		}
		list = rest
	}
	return list
}

// superfluous returns those of old that exceed the history limit, oldest first.
// ReplicaSets with pods, or whose controller is behind, stay.
func superfluous(d *appsv1.Deployment, old []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	limit := d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return nil
	}
	var alive []*appsv1.ReplicaSet
	for _, rs := range old {
		if rs.DeletionTimestamp == nil {
			alive = append(alive, rs)
		}
	}
	excess := len(alive) - int(*limit)
	if excess <= 0 {
		return nil
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(cmp.Compare(revisionOf(a), revisionOf(b)), byAge(a, b))
	})
	var out []*appsv1.ReplicaSet
	for _, rs := range alive[:excess] {
		if rs.Status.Replicas == 0 && size(rs) == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			out = append(out, rs)
		}
	}
	return out
}

// byAge orders by creation, then by name.
func byAge(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// size is the number of pods that a ReplicaSet asks for.
func size(rs *appsv1.ReplicaSet) int32 {
	if rs == nil {
		return 0
	}
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}
