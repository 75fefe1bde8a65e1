// Package objects keeps the ConfigMaps, Secrets and claims that this node's pods
// refer to, and nothing else: one watch per object, by name, shared by all
// pods that use it and ended when the last one is gone. The Node authorizer
// allows no more than that.
package objects

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Kind says which kind of object a Ref names.
type Kind string

// The kinds that can be watched.
const (
	ConfigMap Kind = "configmaps"
	Secret    Kind = "secrets"
	Claim     Kind = "persistentvolumeclaims"
)

// Ref names one object.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

// Config configures a Source.
type Config struct {
	Client kubernetes.Interface
	Logger *slog.Logger
	// Linger is how long an object stays watched after its last user left, so
	// that a pod that replaces another one finds it. A minute when 0.
	Linger time.Duration
}

// Source watches objects that somebody holds. Safe for concurrent use.
type Source struct {
	cfg Config

	mu      sync.Mutex
	watches map[Ref]*entry
	nextSub int
	closed  bool
	wg      sync.WaitGroup
}

type entry struct {
	subs   map[int]func()
	cancel context.CancelFunc
	linger *time.Timer
	synced chan struct{} // closed when the first list is in
	once   sync.Once
	obj    any // nil when it does not exist
}

// New returns a Source that watches nothing yet.
func New(cfg Config) *Source {
	if cfg.Linger == 0 {
		cfg.Linger = time.Minute
	}
	return &Source{cfg: cfg, watches: map[Ref]*entry{}}
}

// Hold keeps the objects watched until release is called. changed is called,
// from another goroutine and possibly more often than needed, whenever one of
// them was created, changed or deleted.
func (s *Source) Hold(refs []Ref, changed func()) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return func() {}
	}
	s.nextSub++
	id := s.nextSub
	for _, ref := range refs {
		e := s.watches[ref]
		if e == nil {
			e = s.start(ref)
		}
		if e.linger != nil {
			e.linger.Stop()
			e.linger = nil
		}
		e.subs[id] = changed
	}
	var once sync.Once
	return func() { once.Do(func() { s.release(id, refs) }) }
}

func (s *Source) release(id int, refs []Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		e := s.watches[ref]
		if e == nil {
			continue
		}
		delete(e.subs, id)
		if len(e.subs) > 0 || e.linger != nil {
			continue
		}
		e.linger = time.AfterFunc(s.cfg.Linger, func() { s.expire(ref, e) })
	}
}

func (s *Source) expire(ref Ref, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[ref] == e && len(e.subs) == 0 {
		e.cancel()
		delete(s.watches, ref)
	}
}

// Close ends all watches and waits for them.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	for ref, e := range s.watches {
		if e.linger != nil {
			e.linger.Stop()
		}
		e.cancel()
		delete(s.watches, ref)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// ConfigMap returns a ConfigMap that is held, waiting for its first answer
// from the API. The error of one that does not exist is the API's NotFound.
// The object is shared: do not change it.
func (s *Source) ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error) {
	obj, err := s.get(ctx, Ref{ConfigMap, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*v1.ConfigMap), nil
}

// Secret is ConfigMap for Secrets.
func (s *Source) Secret(ctx context.Context, namespace, name string) (*v1.Secret, error) {
	obj, err := s.get(ctx, Ref{Secret, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*v1.Secret), nil
}

// Claim is ConfigMap for PersistentVolumeClaims.
func (s *Source) Claim(ctx context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error) {
	obj, err := s.get(ctx, Ref{Claim, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*v1.PersistentVolumeClaim), nil
}

func (s *Source) get(ctx context.Context, ref Ref) (any, error) {
	s.mu.Lock()
	e := s.watches[ref]
	s.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("%s %s/%s is not being watched", ref.Kind, ref.Namespace, ref.Name)
	}
	select {
	case <-e.synced:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for %s %s/%s: %w", ref.Kind, ref.Namespace, ref.Name, ctx.Err())
	}
	s.mu.Lock()
	obj := e.obj
	s.mu.Unlock()
	if obj == nil {
		// The singular is what kubelet's users know: secret "x" not found.
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: strings.TrimSuffix(string(ref.Kind), "s")}, ref.Name)
	}
	return obj, nil
}

// start begins to watch; s.mu is held.
func (s *Source) start(ref Ref) *entry {
	ctx, cancel := context.WithCancel(context.Background())
	e := &entry{subs: map[int]func(){}, cancel: cancel, synced: make(chan struct{})}
	s.watches[ref] = e
	logger := logr.FromSlogHandler(s.cfg.Logger.Handler())
	var expected any
	var lw *cache.ListWatch
	switch core := s.cfg.Client.CoreV1(); ref.Kind {
	case ConfigMap:
		expected, lw = &v1.ConfigMap{}, Named(core.ConfigMaps(ref.Namespace), ref.Name)
	case Secret:
		expected, lw = &v1.Secret{}, Named(core.Secrets(ref.Namespace), ref.Name)
	case Claim:
		expected, lw = &v1.PersistentVolumeClaim{}, Named(core.PersistentVolumeClaims(ref.Namespace), ref.Name)
	}
	r := cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(lw, s.cfg.Client), expected, slot{s, e, ref},
		cache.ReflectorOptions{Name: string(ref.Kind) + "/" + ref.Name, Logger: &logger,
			Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Cap: 10 * time.Second, Steps: 6, Factor: 2, Jitter: 0.5}})
	s.wg.Go(func() { r.RunWithContext(ctx) })
	return e
}

// Named lists and watches the one object of a name that client has.
func Named[L runtime.Object](client interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}, name string) *cache.ListWatch {
	sel := fields.OneTermEqualSelector("metadata.name", name).String()
	return &cache.ListWatch{
		DisableChunking: true,
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = sel
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = sel
			return client.Watch(ctx, o)
		},
	}
}

// slot is the reflector's store: room for one object.
type slot struct {
	s   *Source
	e   *entry
	ref Ref
}

func (t slot) set(obj any) error {
	t.s.mu.Lock()
	t.e.obj = obj
	subs := make([]func(), 0, len(t.e.subs))
	for _, f := range t.e.subs {
		subs = append(subs, f)
	}
	t.s.mu.Unlock()
	t.e.once.Do(func() { close(t.e.synced) })
	for _, f := range subs {
		f()
	}
	return nil
}

func (t slot) Add(obj any) error    { return t.take(obj) }
func (t slot) Update(obj any) error { return t.take(obj) }
func (t slot) Delete(obj any) error {
	if m, ok := obj.(metav1.Object); ok && m.GetName() != t.ref.Name {
		return nil
	}
	return t.set(nil)
}
func (t slot) Resync() error { return nil }

func (t slot) Replace(list []any, _ string) error {
	for _, obj := range list {
		if m, ok := obj.(metav1.Object); ok && m.GetName() == t.ref.Name {
			return t.take(obj)
		}
	}
	return t.set(nil)
}

func (t slot) take(obj any) error {
	m, ok := obj.(metav1.Object)
	if !ok || m.GetName() != t.ref.Name { // a server that ignores the selector
		return nil
	}
	m.SetManagedFields(nil)
	return t.set(obj)
}
