package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// ByService indexes EndpointSlices by the namespace/name of their service.
const ByService = "service"

// IndexByService is the index function of ByService.
func IndexByService(obj any) ([]string, error) {
	s, ok := obj.(*discovery.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("index by service: %T is no EndpointSlice", obj)
	}
	if name := s.Labels[discovery.LabelServiceName]; name != "" {
		return []string{s.Namespace + "/" + name}, nil
	}
	return nil, nil
}

// Config of a Controller.
type Config struct {
	// Services and Slices are started by the caller. Slices must have the
	// index ByService.
	Services cache.SharedIndexInformer
	Slices   cache.SharedIndexInformer
	Table    *ruleset.Table
	Self     Self
	Logger   *slog.Logger
}

// Controller keeps the kernel's maps equal to the Services of the cluster.
type Controller struct {
	cfg   Config
	ready chan struct{}
	wake  chan struct{}

	mu     sync.Mutex
	dirty  map[string]bool
	all    bool // everything is dirty, and the kernel's state is not known
	self   Self
	purges map[ruleset.Key]target

	health *healthServer
	stats  Stats
}

// Stats are counters since the start.
type Stats struct {
	Services  atomic.Int64 // programmed now
	Syncs     atomic.Uint64
	Elements  atomic.Uint64 // map elements added and deleted
	Errors    atomic.Uint64
	Resyncs   atomic.Uint64 // of everything
	UDPPurged atomic.Uint64
	LastSync  atomic.Int64 // unix nanoseconds
	LastTook  atomic.Int64 // nanoseconds
	LastAllNS atomic.Int64 // duration of the last full sync
}

// New makes a controller.
func New(cfg Config) (*Controller, error) {
	if cfg.Services == nil || cfg.Slices == nil || cfg.Table == nil {
		return nil, errors.New("netproxy/service: Services, Slices and Table are required")
	}
	if cfg.Self.NodeName == "" {
		return nil, errors.New("netproxy/service: Self.NodeName is required")
	}
	if _, ok := cfg.Slices.GetIndexer().GetIndexers()[ByService]; !ok {
		return nil, errors.New("netproxy/service: Slices lacks the index ByService")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Controller{
		cfg: cfg, ready: make(chan struct{}), wake: make(chan struct{}, 1),
		dirty: map[string]bool{}, all: true, self: cfg.Self, health: newHealthServer(cfg.Logger),
	}, nil
}

// Ready is closed when the kernel has held every service once.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Stats returns the counters.
func (c *Controller) Stats() *Stats { return &c.stats }

// Resync makes the controller read the kernel's state anew and repair it.
func (c *Controller) Resync() { c.mark(func() { c.all = true }) }

// SetZone changes this node's zone.
func (c *Controller) SetZone(zone string) {
	c.mu.Lock()
	same := c.self.Zone == zone
	c.mu.Unlock()
	if !same {
		c.mark(func() { c.self.Zone, c.all = zone, true })
	}
}

func (c *Controller) mark(fn func()) {
	c.mu.Lock()
	fn()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Controller) markObject(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	switch o := obj.(type) {
	case *v1.Service:
		c.mark(func() { c.dirty[o.Namespace+"/"+o.Name] = true })
	case *discovery.EndpointSlice:
		if name := o.Labels[discovery.LabelServiceName]; name != "" {
			c.mark(func() { c.dirty[o.Namespace+"/"+name] = true })
		}
	}
}

// Run keeps the maps right until ctx ends. The rules stay in the kernel then.
func (c *Controller) Run(ctx context.Context) error {
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    c.markObject,
		UpdateFunc: func(old, obj any) { c.markObject(old); c.markObject(obj) },
		DeleteFunc: c.markObject,
	}
	for _, inf := range []cache.SharedIndexInformer{c.cfg.Services, c.cfg.Slices} {
		reg, err := inf.AddEventHandler(handler)
		if err != nil {
			return fmt.Errorf("watch services: %w", err)
		}
		defer func() { _ = inf.RemoveEventHandler(reg) }()
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.cfg.Services.HasSynced, c.cfg.Slices.HasSynced) {
		return ctx.Err()
	}
	var purger sync.WaitGroup
	defer purger.Wait()
	defer c.health.close()
	purgeWake := make(chan struct{}, 1)
	purger.Go(func() { c.purgeLoop(ctx, purgeWake) })

	var engine *Engine
	delay := time.Duration(0)
	for {
		if err := c.sync(&engine); err != nil {
			c.stats.Errors.Add(1)
			delay = min(max(2*delay, 50*time.Millisecond), 30*time.Second)
			c.cfg.Logger.Error("services are not up to date in the kernel", "error", err, "retryAfter", delay)
			c.Resync()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(delay):
			}
			continue
		}
		delay = 0
		select {
		case <-c.ready:
		default:
			close(c.ready)
		}
		select {
		case purgeWake <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.wake:
		}
	}
}

// sync brings the kernel to what the caches hold.
func (c *Controller) sync(engine **Engine) error {
	c.mu.Lock()
	dirty, all, self := c.dirty, c.all, c.self
	c.dirty, c.all = map[string]bool{}, false
	c.mu.Unlock()
	if len(dirty) == 0 && !all {
		return nil
	}
	start := time.Now()
	var deltas []Delta
	if all || *engine == nil {
		c.stats.Resyncs.Add(1)
		state, err := c.cfg.Table.Load()
		if err != nil {
			return err
		}
		e, repair := NewEngine(state)
		*engine = e
		deltas = append(deltas, Delta{Unit: repair})
		plans := map[string]Ranked{}
		for _, obj := range c.cfg.Services.GetStore().List() {
			svc := obj.(*v1.Service)
			plan, err := c.plan(svc, self)
			if err != nil {
				return err
			}
			plans[svc.Namespace+"/"+svc.Name] = plan
		}
		c.health.keep(func(name string) bool { _, ok := plans[name]; return ok })
		deltas = append(deltas, e.SetAll(plans)...)
	} else {
		for name := range dirty {
			obj, ok, err := c.cfg.Services.GetStore().GetByKey(name)
			if err != nil {
				return fmt.Errorf("service %s: %w", name, err)
			}
			if !ok {
				c.health.set(name, nil, 0)
				deltas = append(deltas, (*engine).Set(name, Ranked{}))
				continue
			}
			plan, err := c.plan(obj.(*v1.Service), self)
			if err != nil {
				return err
			}
			deltas = append(deltas, (*engine).Set(name, plan))
		}
	}
	return c.apply(*engine, deltas, start, all)
}

func (c *Controller) apply(engine *Engine, deltas []Delta, start time.Time, all bool) error {
	var units []*ruleset.Unit
	udp := map[ruleset.Key]target{}
	for _, d := range deltas {
		if !d.Unit.Empty() {
			units = append(units, d.Unit)
			c.stats.Elements.Add(uint64(d.Unit.Size()))
		}
		for _, k := range d.UDP {
			t := target{known: engine.Known(k), endpoints: map[ruleset.Endpoint]bool{}}
			for _, ep := range engine.Targets(k) {
				t.endpoints[ep] = true
			}
			udp[k] = t
		}
	}
	if err := c.cfg.Table.Apply(units); err != nil {
		return err
	}
	c.mu.Lock()
	if c.purges == nil {
		c.purges = map[ruleset.Key]target{}
	}
	for k, t := range udp {
		c.purges[k] = t
	}
	c.mu.Unlock()
	took := time.Since(start)
	c.stats.Services.Store(int64(len(engine.plans)))
	c.stats.Syncs.Add(1)
	c.stats.LastSync.Store(time.Now().UnixNano())
	c.stats.LastTook.Store(int64(took))
	if all {
		c.stats.LastAllNS.Store(int64(took))
		c.cfg.Logger.Info("services are in the kernel", "services", len(engine.plans), "changedElements", sizeOf(units), "took", took)
	}
	return nil
}

func sizeOf(units []*ruleset.Unit) (n int) {
	for _, u := range units {
		n += u.Size()
	}
	return n
}

func (c *Controller) plan(svc *v1.Service, self Self) (Ranked, error) {
	name := svc.Namespace + "/" + svc.Name
	objs, err := c.cfg.Slices.GetIndexer().ByIndex(ByService, name)
	if err != nil {
		return Ranked{}, fmt.Errorf("endpoint slices of %s: %w", name, err)
	}
	epSlices := make([]*discovery.EndpointSlice, len(objs))
	for i, o := range objs {
		epSlices[i] = o.(*discovery.EndpointSlice)
	}
	p := NewPlan(svc, epSlices, self)
	for _, r := range p.Refused {
		c.cfg.Logger.Warn("service is not fully implemented on this node", "service", name, "reason", r)
	}
	c.health.set(name, svc, localCount(epSlices, self.NodeName))
	return Ranked{Rank: svc.CreationTimestamp.UTC().Format(time.RFC3339Nano), Plan: p}, nil
}

// purgeLoop deletes stale UDP entries beside the main loop: reading the whole
// connection tracking table can take long.
func (c *Controller) purgeLoop(ctx context.Context, wake <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		c.mu.Lock()
		targets := c.purges
		c.purges = nil
		c.mu.Unlock()
		if len(targets) == 0 {
			continue
		}
		n, err := purgeUDP(targets)
		c.stats.UDPPurged.Add(uint64(n))
		if err != nil {
			c.stats.Errors.Add(1)
			c.cfg.Logger.Warn("UDP clients may stay on removed endpoints", "error", err)
		}
	}
}
