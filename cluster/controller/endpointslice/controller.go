// Package endpointslice tells which pods answer for a Service: as EndpointSlices,
// and as the older Endpoints. It also mirrors Endpoints that users wrote by hand,
// for Services without selector, into slices.
//
// A node that cannot be reached takes its endpoints out of service by its own
// condition, with one write for each slice; that its pods are marked not ready,
// each by a write of its own, comes later and changes nothing more.
//
// A pod that leaves (deleted, no longer ready) is taken out at once; pods that
// come are gathered for some milliseconds, because every change rewrites a slice
// of up to a hundred endpoints.
//
// Limit: topology hints (spec.trafficDistribution) are not given.
package endpointslice

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/controller"
)

const (
	gatherSlices    = 25 * time.Millisecond
	gatherEndpoints = 250 * time.Millisecond // few read them any more

	managedBySlices = "endpointslice-controller.k8s.io"
	managedByMirror = "endpointslicemirroring-controller.k8s.io"
)

// Controller keeps slices and Endpoints.
type Controller struct {
	cfg       controller.Config
	services  corelisters.ServiceLister
	pods      corelisters.PodLister
	nodes     corelisters.NodeLister
	endpoints corelisters.EndpointsLister
	slices    cache.SharedIndexInformer

	sliceLoop    *controller.Loop
	endpointLoop *controller.Loop
	mirrorLoop   *controller.Loop
	written      *tracker
}

// New returns a controller that does nothing before Run.
func New(cfg controller.Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	core := cfg.Informers.Core().V1()
	c := &Controller{
		cfg:       cfg,
		services:  core.Services().Lister(),
		pods:      core.Pods().Lister(),
		nodes:     core.Nodes().Lister(),
		endpoints: core.Endpoints().Lister(),
		slices:    cfg.Informers.Discovery().V1().EndpointSlices().Informer(),
		written:   newTracker(),
	}
	c.sliceLoop = controller.NewLoop(controller.LoopConfig{
		Name: "endpointslice", Sync: c.syncSlices, Workers: 5, MinInterval: gatherSlices, Logger: cfg.Logger})
	c.endpointLoop = controller.NewLoop(controller.LoopConfig{
		Name: "endpoints", Sync: c.syncEndpoints, Workers: 2, MinInterval: gatherEndpoints, Logger: cfg.Logger})
	c.mirrorLoop = controller.NewLoop(controller.LoopConfig{
		Name: "endpointslicemirroring", Sync: c.syncMirror, Workers: 2, MinInterval: gatherSlices, Logger: cfg.Logger})
	if err := c.watch(); err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	return controller.RunAll(ctx, c.sliceLoop, c.endpointLoop, c.mirrorLoop)
}

func (c *Controller) watch() error {
	core := c.cfg.Informers.Core().V1()
	for _, l := range []*controller.Loop{c.endpointLoop, c.mirrorLoop} {
		for _, inf := range []cache.SharedIndexInformer{core.Services().Informer(), core.Pods().Informer(), core.Nodes().Informer(), core.Endpoints().Informer(), c.slices} {
			l.Needs(inf)
		}
	}
	c.sliceLoop.Needs(core.Endpoints().Informer())
	if err := c.slices.AddIndexers(cache.Indexers{byService: indexByService}); err != nil {
		return fmt.Errorf("index slices by service: %w", err)
	}
	if err := controller.IndexPodsByNode(core.Pods().Informer()); err != nil {
		return err
	}
	if err := controller.Watch(c.sliceLoop, core.Services().Informer(), c.serviceChanged); err != nil {
		return err
	}
	if err := controller.Watch(c.sliceLoop, core.Pods().Informer(), c.podChanged); err != nil {
		return err
	}
	if err := controller.Watch(c.sliceLoop, core.Nodes().Informer(), c.nodeChanged); err != nil {
		return err
	}
	if err := controller.Watch(c.mirrorLoop, core.Endpoints().Informer(), c.endpointsChanged); err != nil {
		return err
	}
	return controller.Watch(c.sliceLoop, c.slices, c.sliceChanged)
}

// byService is an index of slices by the Service that they are labelled with.
const byService = "skiff/service"

func indexByService(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return nil, nil
	}
	return []string{controller.Key(s.Namespace, s.Labels[discoveryv1.LabelServiceName])}, nil
}

// slicesOf returns the cached slices of a Service that manager keeps.
func (c *Controller) slicesOf(key, manager string) ([]*discoveryv1.EndpointSlice, error) {
	objs, err := c.slices.GetIndexer().ByIndex(byService, key)
	if err != nil {
		return nil, fmt.Errorf("list slices of %s: %w", key, err)
	}
	var out []*discoveryv1.EndpointSlice
	for _, obj := range objs {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelManagedBy] == manager {
			out = append(out, s)
		}
	}
	return out, nil
}

func (c *Controller) serviceChanged(old, cur *corev1.Service) {
	if cur == nil {
		cur = old
	}
	key := controller.Key(cur.Namespace, cur.Name)
	c.sliceLoop.Add(key)
	c.endpointLoop.Add(key)
	c.mirrorLoop.Add(key)
}

func (c *Controller) podChanged(old, cur *corev1.Pod) {
	if old != nil && cur != nil && !relevant(old, cur) {
		return
	}
	leaves := cur == nil || old != nil && answers(old) && !answers(cur)
	for _, pod := range []*corev1.Pod{old, cur} {
		if pod == nil || old != nil && pod == old && cur != nil && labels.Equals(old.Labels, cur.Labels) {
			continue
		}
		for _, key := range c.selecting(pod) {
			if leaves {
				c.sliceLoop.AddNow(key)
			} else {
				c.sliceLoop.Add(key)
			}
			c.endpointLoop.Add(key)
		}
	}
}

// relevant reports whether a change of a pod can show in a slice.
func relevant(old, cur *corev1.Pod) bool {
	return old.UID != cur.UID || answers(old) != answers(cur) || controller.Ready(old) != controller.Ready(cur) ||
		(old.DeletionTimestamp == nil) != (cur.DeletionTimestamp == nil) ||
		controller.Finished(old) != controller.Finished(cur) ||
		old.Spec.NodeName != cur.Spec.NodeName ||
		!labels.Equals(old.Labels, cur.Labels) ||
		!equality.Semantic.DeepEqual(old.Status.PodIPs, cur.Status.PodIPs) || old.Status.PodIP != cur.Status.PodIP
}

// answers reports whether traffic should go to a pod.
func answers(pod *corev1.Pod) bool {
	return controller.Ready(pod) && controller.Active(pod)
}

// selecting returns the keys of the Services that select a pod.
func (c *Controller) selecting(pod *corev1.Pod) []string {
	all, err := c.services.Services(pod.Namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	var keys []string
	for _, svc := range all {
		if len(svc.Spec.Selector) > 0 && labels.SelectorFromValidatedSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			keys = append(keys, controller.Key(svc.Namespace, svc.Name))
		}
	}
	return keys
}

// nodeChanged matters when a node's zone does, or whether it can be reached.
func (c *Controller) nodeChanged(old, cur *corev1.Node) {
	if old != nil && cur != nil && unreachable(old) != unreachable(cur) {
		c.nodeLost(cur.Name)
	}
	if old == nil || cur == nil || old.Labels[corev1.LabelTopologyZone] == cur.Labels[corev1.LabelTopologyZone] {
		return
	}
	all, err := c.services.List(labels.Everything())
	if err != nil {
		return
	}
	for _, svc := range all {
		c.sliceLoop.Add(controller.Key(svc.Namespace, svc.Name))
	}
}

func (c *Controller) sliceChanged(old, cur *discoveryv1.EndpointSlice) {
	for _, s := range []*discoveryv1.EndpointSlice{old, cur} {
		if s == nil || s.Labels[discoveryv1.LabelServiceName] == "" {
			continue
		}
		key := controller.Key(s.Namespace, s.Labels[discoveryv1.LabelServiceName])
		switch s.Labels[discoveryv1.LabelManagedBy] {
		case managedBySlices:
			c.sliceLoop.Add(key)
		case managedByMirror:
			c.mirrorLoop.Add(key)
		}
	}
}

func (c *Controller) endpointsChanged(old, cur *corev1.Endpoints) {
	e := cur
	if e == nil {
		e = old
	}
	key := controller.Key(e.Namespace, e.Name)
	c.mirrorLoop.Add(key)
	if old != nil { // new ones are ours, or come with their Service
		c.endpointLoop.Add(key)
	}
}

func (c *Controller) service(key string) (*corev1.Service, error) {
	namespace, name := controller.SplitKey(key)
	svc, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read service %s: %w", key, err)
	}
	return svc, nil
}

// selected returns the pods of a Service; those of lost nodes as not ready.
func (c *Controller) selected(svc *corev1.Service) ([]*corev1.Pod, error) {
	pods, err := c.pods.Pods(svc.Namespace).List(labels.SelectorFromValidatedSet(svc.Spec.Selector))
	if err != nil {
		return nil, fmt.Errorf("list pods of service %s/%s: %w", svc.Namespace, svc.Name, err)
	}
	return withoutLost(pods, c.lost), nil
}
