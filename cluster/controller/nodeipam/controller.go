// Package nodeipam gives every node a range of pod addresses, spec.podCIDR, out
// of the cluster's range.
//
// What is taken is read from the nodes themselves before the first range is
// given, so nothing is remembered elsewhere and a restart cannot hand out a range
// twice. A range returns to the pool when its node is deleted. IPv4 only.
package nodeipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// nodeBits is the size of a node's range: 254 pods.
const nodeBits = 24

// Config is the common one and the range to share out.
type Config struct {
	controller.Config
	// ClusterCIDR is an IPv4 range of /24 or larger.
	ClusterCIDR netip.Prefix
}

// Controller shares the range out.
type Controller struct {
	cfg  Config
	loop *controller.Loop
	// given holds what was written and may not be in the cache yet. One worker
	// uses it, so it needs no lock.
	given map[string]netip.Prefix
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("nodeipam controller: %w", err)
	}
	if !cfg.ClusterCIDR.IsValid() {
		return nil, errors.New("nodeipam controller: config: ClusterCIDR is missing")
	}
	if !cfg.ClusterCIDR.Addr().Is4() || cfg.ClusterCIDR.Bits() > nodeBits {
		return nil, fmt.Errorf("nodeipam controller: config: ClusterCIDR %s: must be IPv4 and hold at least one /%d", cfg.ClusterCIDR, nodeBits)
	}
	cfg.ClusterCIDR = cfg.ClusterCIDR.Masked()
	c := &Controller{cfg: cfg, given: map[string]netip.Prefix{}}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "nodeipam", Sync: c.sync, Workers: 1, Logger: cfg.Logger})
	err := controller.Watch(c.loop, cfg.Informers.Core().V1().Nodes().Informer(), func(old, cur *corev1.Node) {
		switch {
		case cur == nil:
			c.loop.Add(old.Name)
		case cur.Spec.PodCIDR == "" || old == nil:
			c.loop.Add(cur.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nodeipam controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx) }

func (c *Controller) sync(ctx context.Context, name string) error {
	nodes := c.cfg.Informers.Core().V1().Nodes().Lister()
	node, err := nodes.Get(name)
	if apierrors.IsNotFound(err) {
		delete(c.given, name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	if node.Spec.PodCIDR != "" {
		delete(c.given, name) // the cache has it
		return nil
	}
	all, err := nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	free, ok := choose(c.cfg.ClusterCIDR, c.taken(all, name))
	if !ok {
		c.cfg.Events.Eventf(node, corev1.EventTypeWarning, "CIDRNotAvailable",
			"Node %s status is now: CIDRNotAvailable: %s has no /%d left", name, c.cfg.ClusterCIDR, nodeBits)
		return fmt.Errorf("no free /%d in %s for node %s", nodeBits, c.cfg.ClusterCIDR, name)
	}
	return c.assign(ctx, node, free)
}

// taken is every range in use, be it known from the API or only from here.
func (c *Controller) taken(nodes []*corev1.Node, but string) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nodes {
		for _, s := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
			if p, err := netip.ParsePrefix(s); err == nil {
				out = append(out, p)
			}
		}
	}
	for name, p := range c.given {
		if name != but {
			out = append(out, p)
		}
	}
	return out
}

func (c *Controller) assign(ctx context.Context, node *corev1.Node, p netip.Prefix) error {
	patch, err := json.Marshal(map[string]any{
		// The node as it was seen: one that was deleted and came again in
		// between, or that has a range by now, must not get this one.
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"podCIDR": p.String(), "podCIDRs": []string{p.String()}},
	})
	if err != nil {
		return fmt.Errorf("encode range of node %s: %w", node.Name, err)
	}
	c.given[node.Name] = p
	_, err = c.cfg.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		delete(c.given, node.Name)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("give node %s the range %s: %w", node.Name, p, err)
	}
	c.cfg.Logger.Info("node got its pod addresses", "node", node.Name, "podCIDR", p)
	return nil
}

// choose returns the first /24 of cluster that overlaps nothing taken.
func choose(cluster netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	for p := netip.PrefixFrom(cluster.Addr(), nodeBits); cluster.Contains(p.Addr()); p = following(p) {
		free := true
		for _, t := range taken {
			if t.Overlaps(p) {
				free = false
				break
			}
		}
		if free {
			return p, true
		}
		if !following(p).IsValid() {
			break
		}
	}
	return netip.Prefix{}, false
}

// following is the /24 after p; invalid after the last one.
func following(p netip.Prefix) netip.Prefix {
	a := p.Addr().As4()
	for i := 2; i >= 0; i-- {
		a[i]++
		if a[i] != 0 {
			return netip.PrefixFrom(netip.AddrFrom4(a), nodeBits)
		}
	}
	return netip.Prefix{}
}
