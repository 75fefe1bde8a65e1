package coordination

import (
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
)

// leaseWatch joins the stored leases and those of nodes to one watch.
type leaseWatch struct {
	leases  *leases
	options *internalversion.ListOptions
	stored  watch.Interface
	out     chan watch.Event
	done    chan struct{}
	once    sync.Once

	version string                      // newest that went by
	told    map[string]nodehealth.State // leases that the client knows
}

// ResultChan implements watch.Interface.
func (w *leaseWatch) ResultChan() <-chan watch.Event { return w.out }

// Stop implements watch.Interface.
func (w *leaseWatch) Stop() { w.once.Do(func() { close(w.done) }) }

func (w *leaseWatch) run(first watch.EventType, every time.Duration) {
	defer close(w.out)
	defer w.stored.Stop()
	poked, cancel := w.leases.gossip.Changes()
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	if !w.tell(first, true) {
		return
	}
	for {
		ok := true
		select {
		case <-w.done:
			return
		case ev, open := <-w.stored.ResultChan():
			if !open {
				return
			}
			ok = w.pass(ev)
		case <-poked:
			ok = w.tell(watch.Added, false)
		case <-tick.C:
			ok = w.tell(watch.Added, true)
		}
		if !ok {
			return
		}
	}
}

// pass hands on an event of a stored object.
func (w *leaseWatch) pass(ev watch.Event) bool {
	m, err := meta.Accessor(ev.Object)
	if err == nil && ev.Type != watch.Error {
		w.version = m.GetResourceVersion()
		if m.GetNamespace() == corev1.NamespaceNodeLease {
			return true
		}
	}
	return w.send(ev)
}

// tell says what is new of the nodes' leases, and with renew that those of living
// nodes are renewed. unknown is the event for a lease not told of yet.
func (w *leaseWatch) tell(unknown watch.EventType, renew bool) bool {
	now := map[string]bool{}
	for _, m := range w.leases.gossip.Members() {
		lease := w.leases.lease(m, w.version)
		if lease == nil || !matches(w.options, m.Name) {
			continue
		}
		now[m.Name] = true
		state, known := w.told[m.Name]
		kind := watch.Modified
		if !known {
			kind = unknown
		} else if state == m.State && (!renew || m.State != nodehealth.Alive) {
			continue
		}
		w.told[m.Name] = m.State
		if !w.send(watch.Event{Type: kind, Object: lease}) {
			return false
		}
	}
	for name := range w.told {
		if now[name] {
			continue
		}
		delete(w.told, name)
		gone := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, ResourceVersion: w.version}}
		if !w.send(watch.Event{Type: watch.Deleted, Object: gone}) {
			return false
		}
	}
	return true
}

func (w *leaseWatch) send(ev watch.Event) bool {
	select {
	case w.out <- ev:
		return true
	case <-w.done:
		return false
	}
}
