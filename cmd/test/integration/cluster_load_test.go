//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// writeLoad increments counters in ConfigMaps, each update with the revision
// that it read as its precondition, and watches them. A counter that one client
// alone writes shows every acknowledged write; the shared one shows that no
// update was built on an old read.
type writeLoad struct {
	servers []*kubernetes.Clientset
	stop    context.CancelFunc
	writers sync.WaitGroup
	watches sync.WaitGroup
	endRead context.CancelFunc

	mu       sync.Mutex // guards what follows
	acked    map[string]int
	unknown  map[string]int // of the shared counter: updates that may have been done
	lastAck  time.Time
	gaps     []time.Duration // times without any acknowledged write, over a quarter of a second
	writes   int
	failures []string
	final    map[string]int
	watched  []*counterWatch
}

const sharedCounter = "load-shared"

// startWrites starts so many writers and a watcher for each server.
func startWrites(t *testing.T, c *devCluster, writers int) *writeLoad {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	read, endRead := context.WithCancel(context.Background())
	l := &writeLoad{stop: stop, endRead: endRead, acked: map[string]int{}, unknown: map[string]int{}, final: map[string]int{}, lastAck: time.Now()}
	for _, client := range c.clients {
		l.servers = append(l.servers, client)
	}
	names := []string{sharedCounter}
	for i := range writers {
		names = append(names, fmt.Sprintf("load-%d", i))
	}
	for _, name := range names {
		eventually(t, 30*time.Second, func() error {
			_, err := l.servers[0].CoreV1().ConfigMaps("default").Create(ctx, &v1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"load": "counter"}}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) { // by a try of which it was unknown
				return nil
			}
			return err
		})
	}
	var list *v1.ConfigMapList
	eventually(t, 30*time.Second, func() (err error) {
		list, err = l.servers[0].CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{LabelSelector: "load=counter"})
		return err
	})
	for i := range l.servers {
		w := &counterWatch{revision: list.ResourceVersion, seen: map[string]int{}, first: i}
		l.watched = append(l.watched, w)
		l.watches.Go(func() { w.run(read, l) })
	}
	for i := range writers {
		l.writers.Go(func() { l.write(ctx, names[i+1], i) })
	}
	l.writers.Go(func() { l.write(ctx, sharedCounter, 1) })
	l.writers.Go(func() { l.write(ctx, sharedCounter, 2) })
	t.Cleanup(func() { stop(); endRead(); l.writers.Wait(); l.watches.Wait() })
	return l
}

func (l *writeLoad) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// write increments one counter until ctx ends; server is where it begins.
func (l *writeLoad) write(ctx context.Context, name string, server int) {
	for ctx.Err() == nil {
		maps := l.servers[server%len(l.servers)].CoreV1().ConfigMaps("default")
		// What is under way when the load ends is waited for.
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		err := l.increment(try, maps.Get, maps.Update, name)
		cancel()
		if err != nil && !apierrors.IsConflict(err) {
			server++ // another one may answer
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
	}
}

func (l *writeLoad) increment(ctx context.Context,
	get func(context.Context, string, metav1.GetOptions) (*v1.ConfigMap, error),
	update func(context.Context, *v1.ConfigMap, metav1.UpdateOptions) (*v1.ConfigMap, error), name string) error {
	l.mu.Lock()
	before := l.acked[name]
	l.mu.Unlock()
	m, err := get(ctx, name, metav1.GetOptions{})
	if err != nil {
		if apierrors.IsNotFound(err) {
			l.fail("%s is not there though its creation was acknowledged", name)
		}
		return err
	}
	n, err := strconv.Atoi(m.Data["n"])
	if err != nil || n < before {
		l.fail("a linearizable read of %s gave %q, after %d was acknowledged", name, m.Data["n"], before)
		return errors.New("stale read")
	}
	m.Data["n"] = strconv.Itoa(n + 1)
	_, err = update(ctx, m, metav1.UpdateOptions{})
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		if gap := time.Since(l.lastAck); gap > 250*time.Millisecond {
			l.gaps = append(l.gaps, gap)
		}
		l.lastAck = time.Now()
		l.writes++
		l.acked[name] = max(l.acked[name], n+1)
		l.final[name]++
	case !apierrors.IsConflict(err):
		l.unknown[name]++
	}
	return err
}

// acks counts the acknowledged writes so far.
func (l *writeLoad) acks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

// next waits for a write acknowledged after now, and says how long that took.
func (l *writeLoad) next(t *testing.T, since time.Time, limit time.Duration) time.Duration {
	t.Helper()
	// One that was under way may be acknowledged late: two more are enough for
	// none of the writers to be the one that was lucky.
	want := l.acks() + 2
	eventuallyAt(t, limit, 5*time.Millisecond, func() error {
		if now := l.acks(); now < want {
			return fmt.Errorf("no write was acknowledged for %v", time.Since(since).Round(time.Millisecond))
		}
		return nil
	})
	return time.Since(since)
}

// end stops the writers and checks what is left of their work at every server.
func (l *writeLoad) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.writers.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 2*slower*time.Minute)
	defer cancel()
	last := map[string]int{}
	for i, s := range l.servers {
		var list *v1.ConfigMapList
		eventually(t, 30*time.Second, func() (err error) {
			list, err = s.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{LabelSelector: "load=counter"})
			return err
		})
		now := map[string]int{}
		for _, m := range list.Items {
			now[m.Name], _ = strconv.Atoi(m.Data["n"])
		}
		for name, acked := range l.acked {
			done, most := l.final[name], l.final[name]+l.unknown[name]
			if now[name] < acked || now[name] < done || now[name] > most {
				l.fail("server %d has %s = %d: %d writes were acknowledged (the last made it %d), %d more may have been done", i, name, now[name], done, acked, l.unknown[name])
			}
			if now[name] < last[name] { // one whose client gave up may be done late
				l.fail("server %d has %s = %d, another one had %d before: a stale read", i, name, now[name], last[name])
			}
		}
		last = now
	}
	for i, w := range l.watched {
		eventually(t, 30*time.Second, func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for name, n := range last {
				if w.seen[name] < n {
					return fmt.Errorf("watcher %d has seen %s = %d, it is %d; its last error: %v", i, name, w.seen[name], n, w.last)
				}
			}
			return nil
		})
	}
	l.endRead()
	l.watches.Wait()
	moves := 0
	for _, w := range l.watched {
		moves += w.moves
	}
	slices.Sort(l.gaps)
	unknown := 0
	for _, n := range l.unknown {
		unknown += n
	}
	t.Logf("%d writes acknowledged, %d without an answer; watches moved %d times; longest times without a write: %v", l.writes, unknown, moves, l.gaps[max(0, len(l.gaps)-5):])
	if l.writes == 0 {
		t.Error("no write was acknowledged at all")
	}
	for _, f := range l.failures[:min(10, len(l.failures))] {
		t.Error(f)
	}
}

// counterWatch follows the counters and goes on at another server whenever its
// watch ends.
type counterWatch struct {
	first, moves int
	mu           sync.Mutex // guards what follows
	revision     string
	seen         map[string]int
	last         error
}

func (w *counterWatch) run(ctx context.Context, l *writeLoad) {
	for server := w.first; ctx.Err() == nil; server++ {
		err := w.follow(ctx, l, l.servers[server%len(l.servers)])
		w.mu.Lock()
		w.last = err
		w.moves++
		w.mu.Unlock()
		if ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func (w *counterWatch) follow(ctx context.Context, l *writeLoad, s *kubernetes.Clientset) error {
	// One that is silent for long is given up, as clients do.
	limit := int64(8)
	in, err := s.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{LabelSelector: "load=counter", ResourceVersion: w.revision, TimeoutSeconds: &limit})
	if err != nil {
		return err
	}
	defer in.Stop()
	for e := range in.ResultChan() {
		m, ok := e.Object.(*v1.ConfigMap)
		if !ok {
			err := apierrors.FromObject(e.Object)
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				l.fail("watch from revision %s: %v", w.revision, err)
			}
			return err
		}
		w.event(l, e.Type, m)
	}
	return nil
}

// event checks that the counter went on by one, and the revision up.
func (w *counterWatch) event(l *writeLoad, kind watch.EventType, m *v1.ConfigMap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was, _ := strconv.ParseUint(w.revision, 10, 64)
	now, err := strconv.ParseUint(m.ResourceVersion, 10, 64)
	n, nerr := strconv.Atoi(m.Data["n"])
	switch {
	case err != nil || nerr != nil || now <= was:
		l.fail("watcher %d: revision %s of %s came after %s", w.first, m.ResourceVersion, m.Name, w.revision)
	case kind != watch.Modified || n != w.seen[m.Name]+1:
		l.fail("watcher %d: %s %s = %d at revision %s, after %d", w.first, kind, m.Name, n, m.ResourceVersion, w.seen[m.Name])
	}
	w.revision, w.seen[m.Name] = m.ResourceVersion, n
}
