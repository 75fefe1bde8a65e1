package clustertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	k8swatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
)

// watch is what one watcher saw. It moves from member to member and takes the
// last revision it knows of along.
type watch struct {
	name   string
	prefix string // of keys
	parts  []*part
}

// part is what was seen since the watcher had to list; most have only one.
type part struct {
	from   int64 // revision of the list
	upto   int64 // it was told everything up to here
	events []seen
	list   map[string]version
}

type seen struct {
	rev        int64
	key, value string // value is empty on delete
	host       string
	jump       bool // by a restore
}

func (w *world) newWatch(n int) *watch {
	v := &watch{name: fmt.Sprintf("watcher %d", n), prefix: []string{"", "x/", "y/"}[n%3]}
	w.mu.Lock()
	w.watches = append(w.watches, v)
	w.mu.Unlock()
	return v
}

// watch follows v until ctx ends.
func (w *world) watch(ctx context.Context, v *watch, n int) {
	r := rand.New(rand.NewPCG(w.seed, 200+uint64(n)))
	p := &part{}
	v.parts = append(v.parts, p)
	for ctx.Err() == nil {
		m := pick(r, w.alive())
		if m == nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if p.from == 0 {
			if err := w.relist(ctx, m, v, p); err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
		}
		limited, cancel := context.WithTimeout(ctx, time.Duration(1+r.IntN(5000))*time.Millisecond)
		err := w.follow(limited, m, v, p)
		cancel()
		if apierrors.IsResourceExpired(err) {
			p = &part{}
			v.parts = append(v.parts, p)
		}
	}
}

// relist begins a part. p is changed if it succeeds.
func (w *world) relist(ctx context.Context, m *member, v *watch, p *part) error {
	o := op{client: 1000, kind: list}
	w.do(ctx, m, &o, 5*time.Second)
	if o.outcome != done {
		return fmt.Errorf("list: %s", o.why)
	}
	p.list = map[string]version{}
	for k, i := range o.items {
		if strings.HasPrefix(k, v.prefix) {
			p.list[k] = i
		}
	}
	p.from, p.upto = o.rev, o.rev
	return nil
}

// follow watches on one member. What a member says after its crash was not said.
func (w *world) follow(ctx context.Context, m *member, v *watch, p *part) error {
	predicate := storage.Everything
	predicate.AllowWatchBookmarks = true
	in, err := m.pods.Watch(ctx, "/pods/"+v.prefix, storage.ListOptions{
		ResourceVersion: strconv.FormatInt(p.upto, 10), Recursive: true, Predicate: predicate})
	if err != nil {
		return err
	}
	defer in.Stop()
	for {
		e, ok := <-in.ResultChan()
		if !ok {
			return nil
		}
		w.mu.Lock()
		if m.dead.Load() {
			w.mu.Unlock()
			return nil
		}
		err := p.take(e, m.host)
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (p *part) take(e k8swatch.Event, host string) error {
	if e.Type == k8swatch.Error {
		return apierrors.FromObject(e.Object)
	}
	o, ok := e.Object.(*example.Pod)
	if !ok {
		return fmt.Errorf("event of %T", e.Object)
	}
	rev := revisionOf(o)
	if e.Type == k8swatch.Bookmark {
		p.upto = max(p.upto, rev)
		return nil
	}
	s := seen{rev: rev, key: o.Name, value: o.Annotations[annotation], host: host}
	if e.Type == k8swatch.Deleted {
		s.value = ""
	}
	p.upto = rev
	p.events = append(p.events, s)
	return nil
}

// checkWatch compares what a watcher saw with what there was.
func (w *world) checkWatch(v *watch, h *history) (events int) {
	for n, p := range v.parts {
		if p.from == 0 {
			continue // it never began
		}
		last := n == len(v.parts)-1
		want := h.between(v.prefix, p.from, p.upto)
		if last {
			want = h.between(v.prefix, p.from, h.last())
		}
		got := p.events
		for i := range max(len(want), len(got)) {
			switch {
			case i >= len(got):
				w.anomaly("%s (%s) missed %v, and %d more of %d", v.name, v.prefix, want[i], len(want)-i-1, len(want))
			case i >= len(want):
				w.anomaly("%s (%s) saw %v, which was not", v.name, v.prefix, got[i])
			case got[i].rev != want[i].rev || got[i].key != want[i].key || got[i].value != want[i].value:
				w.anomaly("%s (%s) saw %v, should see %v", v.name, v.prefix, got[i], want[i])
			default:
				continue
			}
			break
		}
		events += len(got)
	}
	return events
}
