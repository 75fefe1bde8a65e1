package storage

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// memoryLog is a Log without disks: every command is an entry of its own.
type memoryLog struct {
	fsm *fsm.FSM

	mu    sync.Mutex
	index uint64
	// fail, if set, is what the log answers.
	fail error
	// reads counts read indexes.
	reads int
	// onRead is called by ReadIndex: what a lagging follower learns then.
	onRead func()
}

func (l *memoryLog) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return fsm.Result{}, l.fail
	}
	return l.apply(cmd)
}

func (l *memoryLog) apply(cmd fsm.Command) (fsm.Result, error) {
	data, err := fsm.EncodeEntry(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	l.index++
	results, ok := l.fsm.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).([]fsm.Result)
	if !ok || len(results) != 1 {
		return fsm.Result{}, errors.New("apply gave no result")
	}
	return results[0], nil
}

func (l *memoryLog) ReadIndex(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.onRead != nil {
		l.onRead()
	}
	return l.fail
}

type fixture struct {
	*Resource
	log   *memoryLog
	store *store.Store
}

type fixtureConfig struct {
	history   int
	bookmarks time.Duration
	codec     runtime.Codec
}

// newFixture makes a storage of example pods with its background work running.
func newFixture(t testing.TB, c fixtureConfig) *fixture {
	t.Helper()
	db := store.New(store.Config{HistoryEvents: c.history})
	log := &memoryLog{fsm: fsm.New(db)}
	b, err := New(Config{Store: db, Log: log, BookmarkInterval: c.bookmarks})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Run(ctx) })
	wg.Go(func() { _ = b.Expire(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	if c.codec == nil {
		c.codec = exampleCodec(t)
	}
	r, err := b.Resource(ResourceConfig{Prefix: "/pods/", Codec: c.codec, NewFunc: func() runtime.Object { return &example.Pod{} }})
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{r, log, db}
}

func exampleCodec(t testing.TB) runtime.Codec {
	t.Helper()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, add := range []func(*runtime.Scheme) error{example.AddToScheme, examplev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
}

// otherWrite makes a change that is none of this resource.
func (f *fixture) otherWrite(t *testing.T) int64 {
	t.Helper()
	r, err := f.log.Propose(context.Background(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/skiff/other", Value: []byte("x"), Expect: fsm.Any}))
	if err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	return r.Revision
}
