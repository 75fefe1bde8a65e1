package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// next calls Next and fails the test if it blocks.
func next(t *testing.T, w *Watcher) (evs []*Event, upto int64, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	evs, upto, err = w.Next(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("Next blocks")
	}
	return evs, upto, err
}

// asleep starts Next in the background, and returns when the watcher waits.
func asleep(t *testing.T, w *Watcher) (result chan string) {
	t.Helper()
	result = make(chan string, 1)
	go func() {
		evs, upto, err := w.Next(t.Context())
		result <- fmt.Sprint(eventKeys(evs), upto, err)
	}()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		w.s.past.mu.RLock()
		in := w.in != nil
		w.s.past.mu.RUnlock()
		if in {
			return result
		}
		if time.Now().After(end) {
			t.Fatal("the watcher does not go to sleep")
		}
	}
}

func eventKeys(evs []*Event) (out []string) {
	for _, e := range evs {
		out = append(out, fmt.Sprintf("%s@%d", e.Key, e.Revision))
	}
	return out
}

func stillAsleep(t *testing.T, result chan string) {
	t.Helper()
	select {
	case r := <-result:
		t.Fatalf("woken: %s", r)
	case <-time.After(5 * time.Millisecond):
	}
}

func TestWatchPrefixes(t *testing.T) {
	for _, c := range []struct {
		prefix   string
		wakes    []string
		lets     []string
		expected string
	}{
		{"/registry/pods/", []string{"/registry/pods/default/a"}, []string{"/registry/events/default/a", "/registry/podsx/a", "/other"}, ""},
		{"/registry/pods/default/", []string{"/registry/pods/default/a"}, []string{"/registry/pods/kube-system/a", "/registry/pods/default2/a"}, ""},
		{"/registry/pods/default/web", []string{"/registry/pods/default/web", "/registry/pods/default/web-2"}, []string{"/registry/pods/default/we", "/registry/pods/other/web"}, ""},
		{"/registry/nodes/n1", []string{"/registry/nodes/n1"}, []string{"/registry/nodes/n", "/registry/nodes/o"}, ""},
		{"/registry/", []string{"/registry/pods/default/a", "/registry/x"}, []string{"/skiff/pki/a"}, ""},
		{"/reg", []string{"/registry/pods/default/a", "/reg"}, []string{"/skiff/pki/a"}, ""},
		{"", []string{"/registry/pods/default/a", "plain"}, nil, ""},
		{"plain", []string{"plain", "plainer"}, []string{"/registry/pods/default/a", "pl"}, ""},
		{"/registry/example.com/things/", []string{"/registry/example.com/things/ns/a"}, []string{"/registry/example.com/others/ns/a"}, ""},
	} {
		t.Run(c.prefix, func(t *testing.T) {
			for _, wake := range c.wakes {
				s := New(Config{})
				w := s.Watch(c.prefix, s.Revision())
				result := asleep(t, w)
				for _, key := range c.lets {
					put(s, key, "", -1)
				}
				stillAsleep(t, result)
				put(s, wake, "", -1)
				rev := s.Revision()
				if got, want := <-result, fmt.Sprintf("[%s@%d] %d <nil>", wake, rev, rev); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				// The same from the past.
				evs, upto, err := next(t, s.Watch(c.prefix, 1))
				if err != nil || upto != rev || len(evs) != 1 || evs[0].Key != wake {
					t.Errorf("from the past: %v %d %v", eventKeys(evs), upto, err)
				}
			}
		})
	}
}

func TestWatchEvents(t *testing.T) {
	s := New(Config{})
	a, _ := put(s, "/a/b/c", "1", 0)
	b, _ := put(s, "/a/b/c", "2", 2)
	del(s, "/a/b/c", -1)
	evs, upto, err := next(t, s.Watch("/a/b/", 1))
	if err != nil || upto != 4 || len(evs) != 3 {
		t.Fatalf("%d events up to %d, %v", len(evs), upto, err)
	}
	for i, want := range []Event{{2, a, nil, "/a/b/c"}, {3, b, a, "/a/b/c"}, {4, nil, b, "/a/b/c"}} {
		if *evs[i] != want {
			t.Errorf("event %d: %+v, want %+v", i, *evs[i], want)
		}
	}
}

func TestWatchFromTheFuture(t *testing.T) {
	s := New(Config{})
	w := s.Watch("/", 3)
	result := asleep(t, w)
	put(s, "/a", "", -1) // 2 and 3 were seen elsewhere already
	put(s, "/b", "", -1)
	// It may be woken and go back to sleep.
	stillAsleep(t, result)
	put(s, "/c", "", -1)
	if got := <-result; got != "[/c@4] 4 <nil>" {
		t.Error(got)
	}
}

func TestWatchMany(t *testing.T) {
	s := New(Config{})
	const n = 3*maxEventsPerNext + 10
	for i := range n {
		put(s, fmt.Sprintf("/a/b/%d", i), "", -1)
		put(s, "/a/other/x", "", -1)
	}
	w, seen := s.Watch("/a/b/", 1), 0
	for seen < n {
		evs, _, err := next(t, w)
		if err != nil || len(evs) == 0 || len(evs) > maxEventsPerNext {
			t.Fatalf("%d events, %v", len(evs), err)
		}
		for _, e := range evs {
			if want := int64(2 + 2*seen); e.Revision != want {
				t.Fatalf("event %d has revision %d, want %d", seen, e.Revision, want)
			}
			seen++
		}
	}
}

func TestNudge(t *testing.T) {
	s := New(Config{})
	idle := s.Watch("/quiet/things/", s.Revision())
	result := asleep(t, idle)
	for range 5 {
		put(s, "/busy/things/a", "", -1)
	}
	stillAsleep(t, result)
	s.Nudge()
	if got := <-result; got != "[] 6 <nil>" {
		t.Errorf("nudged: %s", got)
	}
	s.Nudge() // while nobody waits
	if evs, upto, err := next(t, idle); len(evs) != 0 || upto != 6 || err != nil {
		t.Errorf("nudged before Next: %v %d %v", evs, upto, err)
	}
	stillAsleep(t, asleep(t, idle))
}

func TestWatchCancelled(t *testing.T) {
	s := New(Config{})
	w := s.Watch("/a/b/", 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, _, err := w.Next(ctx); done <- err }()
	time.Sleep(time.Millisecond)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if b := s.past.buckets["/a/b/"]; b != nil && len(b.dirs) != 0 {
		t.Error("it is still in the list of sleepers")
	}
	put(s, "/a/b/c", "", -1)
	if evs, _, err := next(t, w); err != nil || len(evs) != 1 {
		t.Errorf("after that: %v %v", evs, err)
	}
}

func TestCompaction(t *testing.T) {
	s := New(Config{HistoryEvents: 10})
	put(s, "/quiet/things/a", "", -1) // 2
	sleeper := s.Watch("/quiet/things/", 2)
	result := asleep(t, sleeper)
	inner := s.Watch("/busy/things/quiet/", 2)
	innerResult := asleep(t, inner)
	for range 50 {
		put(s, "/busy/things/loud/x", "", -1)
	}
	if got := s.CompactRevision(); got != 42 {
		t.Errorf("compact revision %d, want 42", got)
	}
	for prefix, want := range map[string]error{"/busy/things/": ErrCompacted, "/": ErrCompacted, "": ErrCompacted} {
		if _, _, err := next(t, s.Watch(prefix, 41)); !errors.Is(err, want) {
			t.Errorf("%q from 41: %v", prefix, err)
		}
		if evs, _, err := next(t, s.Watch(prefix, 42)); err != nil || len(evs) != 10 {
			t.Errorf("%q from 42: %d events, %v", prefix, len(evs), err)
		}
	}
	// Those who slept have missed nothing.
	stillAsleep(t, result)
	stillAsleep(t, innerResult)
	put(s, "/quiet/things/b", "", -1)
	put(s, "/busy/things/quiet/y", "", -1)
	if got := <-result; got != "[/quiet/things/b@53] 53 <nil>" && got != "[/quiet/things/b@53] 54 <nil>" {
		t.Error(got)
	}
	if got := <-innerResult; got != "[/busy/things/quiet/y@54] 54 <nil>" {
		t.Error(got)
	}
}

func TestHistoryBytes(t *testing.T) {
	s := New(Config{HistoryBytes: 10 * (eventOverhead + 1000)})
	for range 100 {
		put(s, "/a/b/c", string(make([]byte, 1000)), -1)
	}
	if got := s.Revision() - s.CompactRevision(); got != 10 {
		t.Errorf("%d events are kept, want 10", got)
	}
}

func TestReset(t *testing.T) {
	s := New(Config{})
	put(s, "/a/b/c", "", -1)
	behind := s.Watch("/a/b/", 1)
	idle := s.Watch("/a/b/", 2)
	result := asleep(t, idle)
	l := s.NewLoader()
	l.Add(&KeyValue{Key: "/x", ModRevision: 7, CreateRevision: 7, Expires: 5})
	if err := s.Reset(l, 100); err != nil {
		t.Fatal(err)
	}
	if got := <-result; got != "[] 2 revision has been compacted" {
		t.Errorf("the idle watcher: %s", got)
	}
	if _, _, err := next(t, behind); !errors.Is(err, ErrCompacted) {
		t.Errorf("the watcher behind: %v", err)
	}
	if got := fmt.Sprint(keys(s.View(), "", ""), s.Revision(), s.Expired(9, 9)); got != "[/x] 100 [{/x 7}]" {
		t.Error(got)
	}
	put(s, "/a/b/d", "", -1)
	if evs, _, err := next(t, s.Watch("/a/b/", 100)); err != nil || len(evs) != 1 {
		t.Errorf("after that: %v %v", evs, err)
	}
	if err := s.Reset(s.NewLoader(), 50); err == nil || s.Revision() != 101 {
		t.Errorf("the revision went back: %v", err)
	}
}

// TestWatchersSeeEverything lets many watchers follow many writers: each sees
// each change of its prefix once and in order, and ends with the store's state.
func TestWatchersSeeEverything(t *testing.T) {
	s := New(Config{HistoryEvents: 1 << 20, HistoryBytes: 1 << 40})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var writers, watchers sync.WaitGroup
	prefixes := []string{"", "/r/", "/r/a/", "/r/b/", "/r/a/1/", "/r/a/1/k1", "/r/b/2/k"}
	for i := range 21 {
		watchers.Go(func() {
			prefix := prefixes[i%len(prefixes)]
			w, state, last := s.Watch(prefix, 1), map[string]*KeyValue{}, int64(1)
			for {
				evs, upto, err := w.Next(ctx)
				if err != nil {
					t.Errorf("%q: %v", prefix, err)
					return
				}
				for _, e := range evs {
					if e.Revision <= last || e.Prev != state[e.Key] {
						t.Errorf("%q: event at %d after %d, with another version before than was told", prefix, e.Revision, last)
					}
					last = e.Revision
					state[e.Key] = e.KV
					if e.KV == nil {
						delete(state, e.Key)
					}
				}
				if upto < last {
					t.Errorf("%q: told up to %d after %d", prefix, upto, last)
				}
				kv, ok := s.View().Get("/end")
				if ok && upto >= kv.ModRevision {
					want := 0
					s.View().Ascend(prefix, "", func(kv *KeyValue) bool {
						want++
						if state[kv.Key] != kv {
							t.Errorf("%q: %s is not as told", prefix, kv.Key)
						}
						return true
					})
					if len(state) != want {
						t.Errorf("%q: %d keys, told of %d", prefix, want, len(state))
					}
					return
				}
			}
		})
	}
	for i := range 4 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for range 3000 {
				s.Update(func(tx *Txn) {
					for range 1 + r.IntN(4) {
						key := fmt.Sprintf("/r/%c/%d/k%d", 'a'+r.IntN(3), r.IntN(3), r.IntN(20))
						if r.IntN(3) == 0 {
							tx.Delete(key, -1)
						} else {
							tx.Put(key, nil, -1, 0)
						}
					}
				})
			}
		})
	}
	writers.Wait()
	put(s, "/end", "", -1)
	s.Nudge()
	watchers.Wait()
}
