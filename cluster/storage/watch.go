package storage

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"

	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm/store"
)

const (
	// watchBuffer is how many events wait for a slow reader before the watch
	// itself waits; the rest stays in the store's history.
	watchBuffer = 32
	// farewell is how long before its end a watch tells how far it has seen, so
	// that the client can go on from there.
	farewell = 2 * time.Second
)

// watcher is one watch: a goroutine that moves a cursor of the store.
type watcher struct {
	r         *Resource
	ctx       context.Context
	cancel    context.CancelFunc
	results   chan watch.Event
	prefix    string
	recursive bool
	pred      storage.SelectionPredicate
	all       bool // pred matches everything
	bookmarks bool

	sent   int64 // revision that the client knows of
	rounds int64 // bookmark rounds this watch has seen
}

// Watch implements storage.Interface. Without a resourceVersion, or with "0",
// it begins with the present objects, unless SendInitialEvents says otherwise.
func (r *Resource) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	prefix, err := r.key(key, opts.Recursive)
	if err != nil {
		return nil, err
	}
	rev, err := r.versioner.ParseResourceVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	initial := rev == 0
	if opts.SendInitialEvents != nil {
		initial = *opts.SendInitialEvents
	}
	if rev == 0 && opts.ResourceVersion == "" {
		if err := r.b.readIndex(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.b.awaitReady(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{r: r, ctx: ctx, cancel: cancel, results: make(chan watch.Event, watchBuffer),
		prefix: prefix, recursive: opts.Recursive, pred: opts.Predicate, all: opts.Predicate.Empty(),
		bookmarks: opts.ProgressNotify || opts.Predicate.AllowWatchBookmarks,
		sent:      int64(rev), rounds: r.b.rounds.Load()}
	view := r.b.store.View() // now: what is written after the call has to be told
	if w.bookmarks && !initial && w.sent < view.Revision() {
		r.b.behind.Store(true)
	}
	endMark := initial && opts.SendInitialEvents != nil && opts.Predicate.AllowWatchBookmarks
	go w.run(view, initial, endMark)
	utilflowcontrol.WatchInitialized(ctx)
	return w, nil
}

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.cancel() }

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

func (w *watcher) run(view *store.View, initial, endMark bool) {
	defer close(w.results)
	defer w.cancel()
	if w.sent > view.Revision() {
		if err := w.r.reach(w.ctx, w.sent); err != nil {
			w.fail(err)
			return
		}
		view = w.r.b.store.View()
	}
	w.fail(w.follow(view, initial, endMark))
}

// fail tells the client why the watch ends, unless it ended it.
func (w *watcher) fail(err error) {
	if errors.Is(err, seal.ErrKeyGone) { // a past version: the client has to list again
		err = apierrors.NewResourceExpired(watchTooOld)
	}
	if err != nil && w.ctx.Err() == nil {
		w.send(watch.Event{Type: watch.Error, Object: watchStatus(err)})
	}
}

// follow sends the present objects if asked to, then every change.
func (w *watcher) follow(view *store.View, initial, endMark bool) error {
	switch {
	case initial:
		if err := w.present(view); err != nil {
			return err
		}
		w.sent = view.Revision()
		if endMark {
			if err := w.bookmark(view.Revision(), true); err != nil {
				return err
			}
		}
	case w.sent == 0:
		w.sent = view.Revision()
	}
	cursor := w.r.b.store.Watch(w.prefix, w.sent)
	wait, stop := w.untilFarewell()
	defer stop()
	for {
		events, upto, err := cursor.Next(wait)
		switch {
		case errors.Is(err, store.ErrCompacted):
			return apierrors.NewResourceExpired(watchTooOld)
		case err != nil && w.ctx.Err() != nil:
			return nil
		case err != nil: // time to say goodbye
			wait = w.ctx
		}
		for _, e := range events {
			if err := w.change(e); err != nil {
				return err
			}
		}
		if w.bookmarks && upto > w.sent && (err != nil || w.round()) {
			if err := w.bookmark(upto, false); err != nil {
				return err
			}
		}
	}
}

// untilFarewell is the time in which an idle watch has nothing to say.
func (w *watcher) untilFarewell() (context.Context, context.CancelFunc) {
	end, ok := w.ctx.Deadline()
	if !ok || !w.bookmarks {
		return w.ctx, func() {}
	}
	return context.WithDeadline(w.ctx, end.Add(-farewell))
}

// round tells whether there was a bookmark round since the last call.
func (w *watcher) round() bool {
	n := w.r.b.rounds.Load()
	due := n != w.rounds
	w.rounds = n
	return due
}

// present sends the objects of view.
func (w *watcher) present(view *store.View) (err error) {
	one := func(kv *store.KeyValue) bool {
		var obj runtime.Object
		if obj, err = w.r.shared(kv); err != nil {
			return false
		}
		if w.matches(obj) {
			return w.send(watch.Event{Type: watch.Added, Object: share(obj)})
		}
		return w.ctx.Err() == nil
	}
	if w.recursive {
		view.Ascend(w.prefix, "", one)
	} else if kv, ok := view.Get(w.prefix); ok {
		one(kv)
	}
	if err == nil {
		err = w.ctx.Err()
	}
	return err
}

// change sends what e means to this watch: an object may enter or leave the
// selection by a mere modification.
func (w *watcher) change(e *store.Event) error {
	if !w.recursive && e.Key != w.prefix {
		return nil
	}
	now, err := w.selected(e.KV, true)
	if err != nil {
		return err
	}
	before, err := w.selected(e.Prev, e.KV == nil)
	if err != nil {
		return err
	}
	var ev watch.Event
	switch {
	case now.in && before.in:
		ev = watch.Event{Type: watch.Modified, Object: share(now.obj)}
	case now.in:
		ev = watch.Event{Type: watch.Added, Object: share(now.obj)}
	case before.in:
		ev = watch.Event{Type: watch.Deleted, Object: share(before.obj)}
		if err := w.r.versioner.UpdateObject(ev.Object, uint64(e.Revision)); err != nil {
			return err
		}
	default:
		return nil
	}
	if !w.send(ev) {
		return w.ctx.Err()
	}
	w.sent = e.Revision
	return nil
}

// side is one version of an event's object.
type side struct {
	obj runtime.Object
	in  bool // it exists and is in the selection
}

// selected decodes kv if that is needed to decide or to send it.
func (w *watcher) selected(kv *store.KeyValue, needed bool) (side, error) {
	if kv == nil {
		return side{}, nil
	}
	if w.all && !needed {
		return side{in: true}, nil
	}
	obj, err := w.r.shared(kv)
	if err != nil {
		return side{}, err
	}
	return side{obj, w.matches(obj)}, nil
}

func (w *watcher) matches(obj runtime.Object) bool {
	if w.all {
		return true
	}
	ok, err := w.pred.Matches(obj)
	return err == nil && ok
}

// bookmark tells the client that it has seen everything up to rev; end marks
// the end of the initial objects.
func (w *watcher) bookmark(rev int64, end bool) error {
	obj := w.r.newFunc()
	if err := w.r.versioner.UpdateObject(obj, uint64(rev)); err != nil {
		return err
	}
	if end {
		if err := storage.AnnotateInitialEventsEndBookmark(obj); err != nil {
			return err
		}
	}
	if !w.send(watch.Event{Type: watch.Bookmark, Object: obj}) {
		return w.ctx.Err()
	}
	w.sent = rev
	return nil
}

func (w *watcher) send(e watch.Event) bool {
	select {
	case w.results <- e:
		return true
	case <-w.ctx.Done():
		return false
	}
}
