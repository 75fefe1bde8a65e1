package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
)

func pod(name string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}}
}

func (f *fixture) mustCreate(t *testing.T, name string) *example.Pod {
	t.Helper()
	out := &example.Pod{}
	if err := f.Create(context.Background(), "/pods/ns/"+name, pod(name), out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOnlyLinearizableReadsAskTheLog(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	made := f.mustCreate(t, "a")
	ctx := context.Background()
	everything := func(rv string) storage.ListOptions {
		return storage.ListOptions{ResourceVersion: rv, Predicate: storage.Everything, Recursive: true}
	}
	for name, c := range map[string]struct {
		read func() error
		want int
	}{
		"get": {func() error { return f.Get(ctx, "/pods/ns/a", storage.GetOptions{}, &example.Pod{}) }, 1},
		"get any": {func() error {
			return f.Get(ctx, "/pods/ns/a", storage.GetOptions{ResourceVersion: "0"}, &example.Pod{})
		}, 0},
		"list":             {func() error { return f.GetList(ctx, "/pods/", everything(""), &example.PodList{}) }, 1},
		"list any":         {func() error { return f.GetList(ctx, "/pods/", everything("0"), &example.PodList{}) }, 0},
		"list at least":    {func() error { return f.GetList(ctx, "/pods/", everything(made.ResourceVersion), &example.PodList{}) }, 0},
		"list from future": {func() error { return f.GetList(ctx, "/pods/", everything("1000"), &example.PodList{}) }, 1},
	} {
		before := f.log.reads
		err := c.read()
		if name == "list from future" {
			if !storage.IsTooLargeResourceVersion(err) {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := f.log.reads - before; got != c.want {
			t.Errorf("%s: %d read indexes, want %d", name, got, c.want)
		}
	}
}

// lag makes the store of f a follower's: cmd was acknowledged elsewhere, and
// arrives here with the next read index.
func (f *fixture) lag(t *testing.T, cmd fsm.Command) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	f.log.onRead = func() {
		f.log.onRead = nil
		if r, err := f.log.apply(cmd); err != nil || r.Err != nil {
			t.Error(err, r.Err)
		}
	}
}

func TestWhatFollowsFromAStaleCopyIsNotAnswered(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, fixtureConfig{})
	data, err := runtime.Encode(f.codec, pod("b"))
	if err != nil {
		t.Fatal(err)
	}
	put := fsm.One(fsm.Op{Type: fsm.Put, Key: KeyPrefix + "/pods/ns/b", Value: data, Expect: fsm.Any})
	label := storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		p := obj.(*example.Pod)
		if p.Labels["x"] == "y" {
			return nil, errors.New("labelled already")
		}
		p.Labels = map[string]string{"x": "y"}
		return p, nil
	})

	f.lag(t, put) // another server has created it
	if err := f.GuaranteedUpdate(ctx, "/pods/ns/b", &example.Pod{}, false, nil, label, nil); err != nil {
		t.Errorf("update of an object that is not here yet: %v", err)
	}
	f.lag(t, put) // another server has taken the label off
	if err := f.GuaranteedUpdate(ctx, "/pods/ns/b", &example.Pod{}, false, nil, label, nil); err != nil {
		t.Errorf("update that the stale copy forbids: %v", err)
	}
	none := storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) { return obj, nil })
	out := &example.Pod{}
	f.lag(t, put)
	if err := f.GuaranteedUpdate(ctx, "/pods/ns/b", out, false, nil, none, nil); err != nil || out.Labels["x"] != "" {
		t.Errorf("an update that changes nothing answers the stale %v (%v)", out.Labels, err)
	}
	f.lag(t, fsm.One(fsm.Op{Type: fsm.Delete, Key: KeyPrefix + "/pods/ns/b", Expect: fsm.Any}))
	if err := f.GuaranteedUpdate(ctx, "/pods/ns/b", out, false, nil, none, nil); !storage.IsNotFound(err) {
		t.Errorf("update of an object that is gone elsewhere: %v", err)
	}
	f.lag(t, put)
	if err := f.Delete(ctx, "/pods/ns/b", out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
		t.Errorf("delete of an object that is not here yet: %v", err)
	}
}

func TestErrorsOfTheLog(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	f.mustCreate(t, "a")
	ctx := context.Background()
	for _, c := range []struct {
		err   error
		code  int32
		retry bool
		text  string
	}{
		{fmt.Errorf("append: %w", consensus.ErrNoSpace), http.StatusServiceUnavailable, true, "disk of the leading server is full"},
		{consensus.ErrNoLeader, http.StatusServiceUnavailable, true, "no leader"},
		{consensus.ErrUnknownOutcome, http.StatusGatewayTimeout, false, "not confirmed"},
		{context.DeadlineExceeded, http.StatusGatewayTimeout, false, "not confirmed"},
		{fmt.Errorf("propose: %w", consensus.ErrRemoved), http.StatusServiceUnavailable, false, "this server was removed from the cluster"},
		{fsm.ErrInvalid, http.StatusRequestEntityTooLarge, false, "invalid command"},
	} {
		f.log.mu.Lock()
		f.log.fail = c.err
		f.log.mu.Unlock()
		err := f.Create(ctx, "/pods/ns/b", pod("b"), nil, 0)
		var api apierrors.APIStatus
		if !errors.As(err, &api) {
			t.Errorf("%v becomes %v", c.err, err)
			continue
		}
		s := api.Status()
		if retry := s.Details != nil && s.Details.RetryAfterSeconds > 0; s.Code != c.code || retry != c.retry || !strings.Contains(s.Message, c.text) {
			t.Errorf("%v becomes %d, retry %v: %s", c.err, s.Code, retry, s.Message)
		}
		// What is here can still be read.
		if err := f.Get(ctx, "/pods/ns/a", storage.GetOptions{ResourceVersion: "0"}, &example.Pod{}); err != nil {
			t.Errorf("read while %v: %v", c.err, err)
		}
	}
}

// countingCodec counts decodes.
type countingCodec struct {
	runtime.Codec
	decodes atomic.Int64
}

func (c *countingCodec) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	c.decodes.Add(1)
	return c.Codec.Decode(data, gvk, into)
}

func TestWatchersShareOneDecodeAndOwnTheirObjects(t *testing.T) {
	codec := &countingCodec{Codec: exampleCodec(t)}
	f := newFixture(t, fixtureConfig{codec: codec})
	const watchers = 50
	var wg sync.WaitGroup
	for range watchers {
		w, err := f.Watch(t.Context(), "/pods/", storage.ListOptions{ResourceVersion: "0", Predicate: storage.Everything, Recursive: true})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer w.Stop()
			p := (<-w.ResultChan()).Object.(*example.Pod)
			p.Kind, p.ResourceVersion = "Changed", "changed" // as encoders do; -race watches
		})
	}
	f.mustCreate(t, "a")
	wg.Wait()
	// The shared form may be collected meanwhile, so one is not certain.
	if n := codec.decodes.Load(); n > watchers/5 {
		t.Errorf("%d watchers decoded %d times", watchers, n)
	}
	out := &example.Pod{}
	if err := f.Get(t.Context(), "/pods/ns/a", storage.GetOptions{}, out); err != nil || out.Kind == "Changed" {
		t.Errorf("a watcher changed what others read: %v %v", out, err)
	}
}

func TestExpiredAreDeletedButNotTheirSuccessors(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	ctx := context.Background()
	w, err := f.Watch(t.Context(), "/pods/", storage.ListOptions{ResourceVersion: "0", Predicate: storage.Everything, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, name := range []string{"a", "b", "keep"} {
		if err := f.Create(ctx, "/pods/ns/"+name, pod(name), nil, 1); err != nil {
			t.Fatal(err)
		}
	}
	// A longer life, and what kept its own.
	if err := f.GuaranteedUpdate(ctx, "/pods/ns/keep", &example.Pod{}, false, nil, func(obj runtime.Object, res storage.ResponseMeta) (runtime.Object, *uint64, error) {
		if res.TTL > 1 || res.TTL < 0 {
			t.Errorf("%d seconds are left of 1", res.TTL)
		}
		p, long := obj.(*example.Pod), uint64(1000)
		p.Labels = map[string]string{"x": "y"}
		return p, &long, nil
	}, nil); err != nil {
		t.Fatal(err)
	}
	gone := map[string]bool{}
	for timeout := time.After(10 * time.Second); len(gone) < 2; {
		select {
		case e := <-w.ResultChan():
			if e.Type == watch.Deleted {
				gone[e.Object.(*example.Pod).Name] = true
			}
		case <-timeout:
			t.Fatalf("after 10s only %v are gone", gone)
		}
	}
	if err := f.Get(ctx, "/pods/ns/keep", storage.GetOptions{}, &example.Pod{}); err != nil || gone["keep"] {
		t.Errorf("deleted what has time to live: %v", err)
	}
}

func TestExpireGoesOnWhenOneOfABatchWasReplaced(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	ctx := context.Background()
	a, b := f.mustCreate(t, "a"), f.mustCreate(t, "b")
	_ = a
	stale := func(name string, rev int64) fsm.Op {
		return fsm.Op{Type: fsm.Delete, Key: KeyPrefix + "/pods/ns/" + name, Expect: rev}
	}
	rev, err := f.versioner.ObjectResourceVersion(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.b.deleteExpired(ctx, []fsm.Op{stale("a", 1), stale("b", int64(rev))}); err != nil {
		t.Fatal(err)
	}
	if err := f.Get(ctx, "/pods/ns/a", storage.GetOptions{}, &example.Pod{}); err != nil {
		t.Errorf("the replaced one: %v", err)
	}
	if err := f.Get(ctx, "/pods/ns/b", storage.GetOptions{}, &example.Pod{}); !storage.IsNotFound(err) {
		t.Errorf("the expired one: %v", err)
	}
}

func TestWatchSaysFarewell(t *testing.T) {
	f := newFixture(t, fixtureConfig{bookmarks: time.Hour})
	made := f.mustCreate(t, "a")
	f.otherWrite(t)
	ctx, cancel := context.WithTimeout(t.Context(), farewell+50*time.Millisecond)
	defer cancel()
	pred := storage.Everything
	pred.AllowWatchBookmarks = true
	w, err := f.Watch(ctx, "/pods/", storage.ListOptions{ResourceVersion: made.ResourceVersion, Predicate: pred, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	e := <-w.ResultChan()
	if e.Type != watch.Bookmark || e.Object.(*example.Pod).ResourceVersion == made.ResourceVersion {
		t.Errorf("before its end the watch says %v", e)
	}
}
