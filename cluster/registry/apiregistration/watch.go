package apiregistration

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// watchQueue is how many changes a watcher may be behind; then its watch ends,
// and it lists again.
const watchQueue = 100

// watcher is one watch. Its channel is written and closed under the storage's
// lock.
type watcher struct {
	a       *APIServices
	options *metainternalversion.ListOptions
	ch      chan watch.Event
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.ch }

// Stop implements watch.Interface.
func (w *watcher) Stop() {
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	w.a.drop(w)
}

// drop ends a watch; a.mu is held.
func (a *APIServices) drop(w *watcher) {
	if a.watchers[w] {
		delete(a.watchers, w)
		close(w.ch)
	}
}

// tell gives an event to all watchers that want it; a.mu is held.
func (a *APIServices) tell(e watch.Event) {
	for w := range a.watchers {
		if !matches(w.options, e.Object.(*apiregistrationv1.APIService)) {
			continue
		}
		select {
		case w.ch <- watch.Event{Type: e.Type, Object: e.Object.DeepCopyObject()}:
		default:
			a.drop(w)
		}
	}
}

func matches(o *metainternalversion.ListOptions, s *apiregistrationv1.APIService) bool {
	return o == nil ||
		(o.LabelSelector == nil || o.LabelSelector.Matches(labels.Set(s.Labels))) &&
			(o.FieldSelector == nil || o.FieldSelector.Matches(fields.Set{"metadata.name": s.Name}))
}

// Watch implements rest.Watcher. A watch begins with all that there is, or goes
// on from the newest version; from any other the client has to list again.
func (a *APIServices) Watch(_ context.Context, o *metainternalversion.ListOptions) (watch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	streamed := o.SendInitialEvents != nil && *o.SendInitialEvents
	var first []watch.Event
	switch rv := o.ResourceVersion; {
	case streamed, rv == "", rv == "0":
		for _, s := range a.byName {
			if matches(o, s) {
				first = append(first, watch.Event{Type: watch.Added, Object: s.DeepCopy()})
			}
		}
	case rv != a.now():
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %s (%s)", rv, a.now()))
	}
	if streamed {
		end := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{ResourceVersion: a.now(),
			Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
		first = append(first, watch.Event{Type: watch.Bookmark, Object: end})
	}
	w := &watcher{a: a, options: o, ch: make(chan watch.Event, len(first)+watchQueue)}
	for _, e := range first {
		w.ch <- e
	}
	a.watchers[w] = true
	return w, nil
}
