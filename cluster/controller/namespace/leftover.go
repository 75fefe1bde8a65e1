package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leftover is what a pass over a namespace has left.
type leftover struct {
	discovery  error
	content    []error
	remaining  map[string]int // resource -> objects
	finalizers map[string]int // finalizer -> objects
	onlyPods   bool           // the rest was not tried yet
}

func (l *leftover) add(f found) {
	if f.err != nil {
		l.content = append(l.content, f.err)
	}
	if f.count > 0 {
		l.remaining[name(f.resource)] += f.count
	}
	for finalizer, n := range f.finalizers {
		l.finalizers[finalizer] += n
	}
}

// nothing reports whether the namespace is known to be empty.
func (l *leftover) nothing() bool {
	return l.discovery == nil && len(l.content) == 0 && len(l.remaining) == 0
}

func (l *leftover) err() error { return errors.Join(l.discovery, errors.Join(l.content...)) }

// conditions are those of the namespace, in upstream's words.
func (l *leftover) conditions() []corev1.NamespaceCondition {
	out := []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"},
		{Type: corev1.NamespaceDeletionGVParsingFailure, Status: corev1.ConditionFalse, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
		{Type: corev1.NamespaceDeletionContentFailure, Status: corev1.ConditionFalse, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"},
		{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionFalse, Reason: "ContentRemoved", Message: "All content successfully removed"},
		{Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionFalse, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"},
	}
	set := func(i int, reason, message string) {
		out[i].Status, out[i].Reason, out[i].Message = corev1.ConditionTrue, reason, message
	}
	if l.discovery != nil {
		set(0, "DiscoveryFailed", fmt.Sprintf("Discovery failed for some groups, %v", l.discovery))
	}
	if len(l.content) > 0 {
		set(2, "ContentDeletionFailed", fmt.Sprintf("Failed to delete all resource types, %d remaining: %v", len(l.content), errors.Join(l.content...)))
	}
	if len(l.remaining) > 0 {
		set(3, "SomeResourcesRemain", "Some resources are remaining: "+list(l.remaining, "%s. has %d resource instances"))
	}
	if len(l.finalizers) > 0 {
		set(4, "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: "+list(l.finalizers, "%s in %d resource instances"))
	}
	return out
}

func list(counts map[string]int, format string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf(format, key, counts[key]))
	}
	return strings.Join(parts, ", ")
}

// merge puts next into have, and reports whether anything changed. Transition
// times move only when a status does.
func merge(have, next []corev1.NamespaceCondition, now time.Time) ([]corev1.NamespaceCondition, bool) {
	out := slices.Clone(have)
	changed := false
	for _, n := range next {
		i := slices.IndexFunc(out, func(c corev1.NamespaceCondition) bool { return c.Type == n.Type })
		n.LastTransitionTime = metav1.NewTime(now)
		switch {
		case i < 0:
			out = append(out, n)
		case out[i].Status == n.Status && out[i].Reason == n.Reason && out[i].Message == n.Message:
			continue
		default:
			if out[i].Status == n.Status {
				n.LastTransitionTime = out[i].LastTransitionTime
			}
			out[i] = n
		}
		changed = true
	}
	return out, changed
}
