package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/static"
)

// reflect keeps a store up to date until ctx ends. The pauses after failures
// are short: a node waits for its servers, not the other way round.
func reflect(ctx context.Context, client kubernetes.Interface, log *slog.Logger, name string, lw *cache.ListWatch, kind any, store cache.ReflectorStore) {
	logger := logr.FromSlogHandler(log.Handler())
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), kind, store, cache.ReflectorOptions{
		Name: name, Logger: &logger, Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Cap: 5 * time.Second, Steps: 7, Factor: 2, Jitter: 0.5}})
	r.RunWithContext(ctx)
}

// runPods follows the pods that are bound to this node.
func (a *Agent) runPods(ctx context.Context) error {
	sel := fields.OneTermEqualSelector("spec.nodeName", a.cfg.Name).String()
	pods := a.client.CoreV1().Pods("")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			// What is not in the list is ended: it must not come from a server that
			// is behind, or cut off.
			if o.ResourceVersion == "0" {
				o.ResourceVersion = ""
			}
			o.FieldSelector = sel
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = sel
			return pods.Watch(ctx, o)
		},
	}
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store := &podStore{m: a.pods, mirrors: a.mirrors, ctx: ctx, node: a.cfg.Name, log: a.cfg.Logger, failed: func(err error) {
		select {
		case failed <- err:
		default:
		}
		cancel()
	}}
	reflect(ctx, a.client, a.cfg.Logger, "pods", lw, &v1.Pod{}, store)
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// podStore hands what the watch says to the pod manager.
type podStore struct {
	m       *pod.Manager
	mirrors *static.Mirrors
	ctx     context.Context
	node    string
	log     *slog.Logger
	failed  func(error)
	started bool
}

func (s *podStore) take(obj any) error {
	p, ok := obj.(*v1.Pod)
	if !ok {
		return nil
	}
	if !s.mine(p) {
		return nil
	}
	if static.IsMirror(p) {
		s.mirrors.Saw(p)
	} else {
		s.m.Update(p)
	}
	return nil
}

// mine says that a pod is bound to this node, and strips what nobody here reads.
// That it came from a manifest only a manifest can say.
func (s *podStore) mine(p *v1.Pod) bool {
	p.ManagedFields = nil
	if _, claims := p.Annotations[pod.SourceAnnotation]; claims && !static.IsMirror(p) {
		p.Annotations[pod.SourceAnnotation] = "api"
	}
	return p.Spec.NodeName == s.node
}

func (s *podStore) Add(obj any) error    { return s.take(obj) }
func (s *podStore) Update(obj any) error { return s.take(obj) }
func (s *podStore) Resync() error        { return nil }
func (s *podStore) Delete(obj any) error {
	p, ok := obj.(*v1.Pod)
	switch {
	case ok && static.IsMirror(p):
		s.mirrors.Gone(p)
	case ok:
		s.m.Remove(p.UID)
	}
	return nil
}

// Replace is the first list, or a new one after the watch was broken.
func (s *podStore) Replace(list []any, _ string) error {
	var pods, mirrors []*v1.Pod
	uids := map[types.UID]bool{}
	for _, obj := range list {
		p, ok := obj.(*v1.Pod)
		switch {
		case !ok || !s.mine(p):
		case static.IsMirror(p):
			mirrors = append(mirrors, p)
		default:
			pods = append(pods, p)
			uids[p.UID] = true
		}
	}
	s.mirrors.Have(mirrors)
	if !s.started {
		s.started = true
		if err := s.m.Start(s.ctx, pods); err != nil && s.ctx.Err() == nil {
			s.failed(fmt.Errorf("adopting pods: %w", err))
		}
		return nil
	}
	s.m.Keep(uids)
	for _, p := range pods {
		s.m.Update(p)
	}
	return nil
}

// services are the cluster's services, for the environment of containers.
type services struct {
	client kubernetes.Interface
	log    *slog.Logger
	synced chan struct{}
	once   sync.Once

	mu   sync.Mutex
	byID map[string]*v1.Service
	all  []*v1.Service // nil after a change
}

func newServices(client kubernetes.Interface, log *slog.Logger) *services {
	return &services{client: client, log: log, synced: make(chan struct{}), byID: map[string]*v1.Service{}}
}

func (s *services) run(ctx context.Context) {
	api := s.client.CoreV1().Services("")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
	}
	reflect(ctx, s.client, s.log, "services", lw, &v1.Service{}, s)
}

// list waits for the first list of the API.
func (s *services) list(ctx context.Context) ([]*v1.Service, error) {
	select {
	case <-s.synced:
	default:
		select {
		case <-s.synced:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make([]*v1.Service, 0, len(s.byID))
		for _, svc := range s.byID {
			s.all = append(s.all, svc)
		}
	}
	return s.all, nil
}

// slim keeps what the environment is made of.
func slim(obj any) (*v1.Service, bool) {
	svc, ok := obj.(*v1.Service)
	if !ok {
		return nil, false
	}
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Namespace: svc.Namespace},
		Spec: v1.ServiceSpec{ClusterIP: svc.Spec.ClusterIP, Ports: svc.Spec.Ports}}, true
}

func (s *services) Add(obj any) error {
	if svc, ok := slim(obj); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.byID[svc.Namespace+"/"+svc.Name] = svc
		s.all = nil
	}
	return nil
}
func (s *services) Update(obj any) error { return s.Add(obj) }
func (s *services) Resync() error        { return nil }
func (s *services) Delete(obj any) error {
	if svc, ok := obj.(*v1.Service); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.byID, svc.Namespace+"/"+svc.Name)
		s.all = nil
	}
	return nil
}

func (s *services) Replace(list []any, _ string) error {
	s.mu.Lock()
	clear(s.byID)
	s.mu.Unlock()
	for _, obj := range list {
		if err := s.Add(obj); err != nil {
			return err
		}
	}
	s.once.Do(func() { close(s.synced) })
	return nil
}
