package scheduler

import (
	"cmp"
	"container/heap"
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"github.com/skiff-sh/skiff/cluster/registry/core"
)

const (
	backoffFirst = 50 * time.Millisecond
	backoffMax   = 10 * time.Second
	// parkedMax is how long a pod waits at most before it is tried again without
	// anything having happened: a net under the wake-up rules.
	parkedMax = 5 * time.Minute
)

// place is where in the queue a pod is.
type place int

const (
	inActive  place = iota // to be scheduled next
	inBackoff              // to be scheduled when its time comes
	inParked               // waits for an event
	inGated                // waits for its scheduling gates to go
	inFlight               // handed out by pop
)

// item is a pod that waits for a node.
type item struct {
	pod      *corev1.Pod
	place    place
	heapAt   int // position in its heap
	order    uint64
	attempts int
	due      time.Time // when backoff ends, or when a parked pod is tried anyway
	wakes    event     // what a parked pod waits for
	poppedAt uint64    // queue.moves when it was handed out
	rescued  bool      // came back without an event
	said     string    // the last message the user got
	saidAt   time.Time // when
}

// queue holds the pods without a node. Pods of higher priority come first, then
// those that have waited longer.
type queue struct {
	mu      sync.Mutex
	wake    *sync.Cond
	items   map[types.UID]*item
	active  itemHeap
	waiting itemHeap // backoff and parked, by due time
	serial  uint64
	// moves counts events; lastMove tells for each kind when it came last. They
	// catch what happens while a decision is under way.
	moves    uint64
	lastMove map[event]uint64
	now      func() time.Time
}

func newQueue() *queue {
	q := &queue{items: map[types.UID]*item{}, lastMove: map[event]uint64{}, now: time.Now}
	q.wake = sync.NewCond(&q.mu)
	q.active.less = func(a, b *item) bool {
		pa, pb := corev1helpers.PodPriority(a.pod), corev1helpers.PodPriority(b.pod)
		return cmp.Or(cmp.Compare(pb, pa), cmp.Compare(a.order, b.order)) < 0
	}
	q.waiting.less = func(a, b *item) bool { return a.due.Before(b.due) }
	return q
}

// put adds a pod, or takes note of a new version of it; changed tells whether a
// known pod differs in what scheduling looks at.
func (q *queue) put(pod *corev1.Pod, changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it, known := q.items[pod.UID]
	if !known {
		q.serial++
		it = &item{pod: pod, order: q.serial}
		q.items[pod.UID] = it
		q.enter(it)
		return
	}
	q.take(it, pod, changed)
}

// renew is put for a pod that is being bound: one that the queue has let go stays
// out of it.
func (q *queue) renew(pod *corev1.Pod, changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it, known := q.items[pod.UID]; known {
		q.take(it, pod, changed)
	}
}

// take gives an item the newest version of its pod.
func (q *queue) take(it *item, pod *corev1.Pod, changed bool) {
	it.pod = pod
	switch {
	case it.place == inFlight:
		if changed {
			it.poppedAt = 0 // whatever is decided now is out of date
		}
	case it.place == inGated || changed && it.place == inParked:
		q.leave(it)
		q.enter(it)
	}
}

// enter puts it where it can be scheduled from, or with the gated ones.
func (q *queue) enter(it *item) {
	if len(it.pod.Spec.SchedulingGates) > 0 {
		it.place = inGated
		return
	}
	it.place = inActive
	it.rescued = false
	heap.Push(&q.active, it)
	q.wake.Signal()
}

func (q *queue) leave(it *item) {
	switch it.place {
	case inActive:
		heap.Remove(&q.active, it.heapAt)
	case inBackoff, inParked:
		heap.Remove(&q.waiting, it.heapAt)
	}
}

// drop forgets a pod.
func (q *queue) drop(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it, ok := q.items[uid]; ok {
		q.leave(it)
		delete(q.items, uid)
	}
}

// pop hands out the next pod as it is now, and waits for one; nil when ctx has
// ended. The caller ends with done, retry or park.
func (q *queue) pop(ctx context.Context) (*item, *corev1.Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil, nil
		}
		q.release()
		if len(q.active.items) > 0 {
			it := heap.Pop(&q.active).(*item)
			it.place = inFlight
			it.attempts++
			q.moves++
			it.poppedAt = q.moves
			return it, it.pod
		}
		q.sleep(ctx)
	}
}

// sleep waits for a signal, the next due time or the end of ctx.
func (q *queue) sleep(ctx context.Context) {
	stop := context.AfterFunc(ctx, q.rouse)
	defer stop()
	if len(q.waiting.items) > 0 {
		timer := time.AfterFunc(max(0, q.waiting.items[0].due.Sub(q.now())), q.rouse)
		defer timer.Stop()
	}
	q.wake.Wait()
}

func (q *queue) rouse() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake.Broadcast()
}

// release makes pods active whose time has come.
func (q *queue) release() {
	for len(q.waiting.items) > 0 && !q.waiting.items[0].due.After(q.now()) {
		it := heap.Pop(&q.waiting).(*item)
		rescued := it.place == inParked
		q.enter(it)
		it.rescued = rescued
	}
}

// done ends the care for a pod that has a node.
func (q *queue) done(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.pod.UID] == it {
		delete(q.items, it.pod.UID)
	}
}

// retry brings a pod back after its backoff: what failed was not its fault.
func (q *queue) retry(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.pod.UID] == it {
		q.backOff(it)
	}
}

// park lets a pod wait for one of the events of wakes. If one of them has come
// since the pod was handed out, or the pod has changed, it only backs off.
func (q *queue) park(it *item, wakes event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items[it.pod.UID] != it {
		return // deleted in the meantime
	}
	if it.poppedAt == 0 || q.movedSince(wakes, it.poppedAt) {
		q.backOff(it)
		return
	}
	it.place, it.wakes, it.due = inParked, wakes, q.now().Add(parkedMax)
	heap.Push(&q.waiting, it)
}

// repeats reports whether message is what was last said of a pod, nothing has
// happened since, and the event is still to be read; else it notes the message.
func (q *queue) repeats(it *item, message string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	if it.rescued && it.said == message && now.Sub(it.saidAt) < core.EventTTL/2 {
		return true
	}
	it.said, it.saidAt = message, now
	return false
}

func (q *queue) movedSince(wakes event, at uint64) bool {
	for kind, when := range q.lastMove {
		if wakes&kind != 0 && when > at {
			return true
		}
	}
	return false
}

func (q *queue) backOff(it *item) {
	it.place, it.due = inBackoff, q.now().Add(backoff(it.attempts))
	heap.Push(&q.waiting, it)
	q.wake.Signal() // it may be due before what pop sleeps for
}

func backoff(attempts int) time.Duration {
	d := backoffFirst
	for i := 1; i < attempts && d < backoffMax; i++ {
		d *= 2
	}
	return min(d, backoffMax)
}

// move wakes the parked pods that wait for one of the kinds of e. Each backs off
// first, so that a storm of events cannot make the scheduler spin.
func (q *queue) move(e event) {
	if e == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.moves++
	for kind := event(1); kind <= lastEvent; kind <<= 1 {
		if e&kind != 0 {
			q.lastMove[kind] = q.moves
		}
	}
	var woken []*item
	for _, it := range q.waiting.items {
		if it.place == inParked && it.wakes&e != 0 {
			woken = append(woken, it)
		}
	}
	for _, it := range woken {
		parkedAt := it.due.Add(-parkedMax)
		heap.Remove(&q.waiting, it.heapAt)
		it.place, it.due = inBackoff, parkedAt.Add(backoff(it.attempts))
		heap.Push(&q.waiting, it)
	}
	if len(woken) > 0 {
		q.wake.Signal()
	}
}

// itemHeap is a container/heap of items.
type itemHeap struct {
	items []*item
	less  func(a, b *item) bool
}

func (h *itemHeap) Len() int           { return len(h.items) }
func (h *itemHeap) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }
func (h *itemHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].heapAt, h.items[j].heapAt = i, j
}
func (h *itemHeap) Push(x any) {
	it := x.(*item)
	it.heapAt = len(h.items)
	h.items = append(h.items, it)
}
func (h *itemHeap) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return it
}
