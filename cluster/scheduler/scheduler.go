package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// DefaultName is the scheduler name of pods that name none.
const DefaultName = corev1.DefaultSchedulerName

// Binder writes what the scheduler decides.
type Binder interface {
	// Bind assigns pod to node. The error tells apart, in the API's terms, a pod
	// that is gone (NotFound) or has a node already (Conflict).
	Bind(ctx context.Context, pod *corev1.Pod, node string) error
	// Explain records in the pod's status why it has no node.
	Explain(ctx context.Context, pod *corev1.Pod, condition corev1.PodCondition) error
	// Claim reads a claim as it is now.
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	// UpdateClaim and UpdateVolume write those of the version that they were read
	// at.
	UpdateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error)
	UpdateVolume(ctx context.Context, v *corev1.PersistentVolume) error
}

// Config describes a Scheduler.
type Config struct {
	// Name is which pods, by spec.schedulerName, are scheduled; DefaultName if "".
	Name string
	// Binder writes; see NewBinder.
	Binder Binder
	// Informers is shared with others and started by its owner, after New.
	Informers informers.SharedInformerFactory
	// Events receives Scheduled and FailedScheduling.
	Events record.EventRecorder
	// Workers is how many bindings are written at a time; 32 if 0.
	Workers int
	// Logger receives the rest.
	Logger *slog.Logger
}

// Scheduler assigns pods to nodes.
type Scheduler struct {
	cfg      Config
	state    *state
	queue    *queue
	chooser  chooser
	pods     corelisters.PodLister
	handlers []cache.DoneChecker
	writes   chan func(context.Context) // what the workers do
	waits    sync.WaitGroup             // bindings that wait for volumes
}

// New registers event handlers and starts nothing.
func New(cfg Config) (*Scheduler, error) {
	switch {
	case cfg.Binder == nil:
		return nil, errors.New("scheduler: config: Binder is missing")
	case cfg.Informers == nil:
		return nil, errors.New("scheduler: config: Informers is missing")
	case cfg.Events == nil:
		return nil, errors.New("scheduler: config: Events is missing")
	case cfg.Logger == nil:
		return nil, errors.New("scheduler: config: Logger is missing")
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.Workers == 0 {
		cfg.Workers = 32
	}
	namespaces := cfg.Informers.Core().V1().Namespaces().Lister()
	s := &Scheduler{
		cfg: cfg, queue: newQueue(), pods: cfg.Informers.Core().V1().Pods().Lister(), writes: make(chan func(context.Context), 4*cfg.Workers),
		state: newState(func(name string) labels.Set {
			ns, err := namespaces.Get(name)
			if err != nil {
				return nil
			}
			return ns.Labels
		}),
	}
	var err error
	if s.state.volumes, err = newVolumes(cfg.Informers); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	if err := s.watch(); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	return s, nil
}

// Run schedules until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	if !cache.WaitFor(ctx, "", s.handlers...) {
		return nil // ctx ended first
	}
	var wg sync.WaitGroup
	for range s.cfg.Workers {
		wg.Go(func() { s.writeAll(ctx) })
	}
	for it, pod := s.queue.pop(ctx); it != nil; it, pod = s.queue.pop(ctx) {
		s.schedule(ctx, it, pod)
	}
	wg.Wait()
	s.waits.Wait()
	return nil
}

// schedule decides on one pod.
func (s *Scheduler) schedule(ctx context.Context, it *item, pod *corev1.Pod) {
	if field := unsupported(pod); field != "" {
		s.refuse(ctx, it, pod, fmt.Sprintf("%s is not supported by this scheduler", field), 0)
		return
	}
	p, err := newPodInfo(pod)
	if err != nil {
		s.refuse(ctx, it, pod, err.Error(), 0)
		return
	}
	s.state.mu.Lock()
	n, why := s.chooser.choose(p, s.state)
	assumed := n != nil && s.state.assume(p, n)
	s.state.mu.Unlock()
	if n == nil {
		s.refuse(ctx, it, pod, why.message(), why.wakes)
		return
	}
	if !assumed {
		s.queue.retry(it)
		return
	}
	node := n.name
	if len(p.plan) > 0 {
		s.waits.Go(func() { s.bindWithVolumes(ctx, it, p, node) })
		return
	}
	s.later(ctx, func(ctx context.Context) { s.bind(ctx, it, pod, node) })
}

// later leaves a write to the workers; when all of them are busy, it waits.
func (s *Scheduler) later(ctx context.Context, write func(context.Context)) {
	select {
	case s.writes <- write:
	case <-ctx.Done():
	}
}

// writeAll does what later was given, until ctx ends.
func (s *Scheduler) writeAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case write := <-s.writes:
			write(ctx)
		}
	}
}
