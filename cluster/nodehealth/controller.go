package nodehealth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// DefaultGrace is how long a Node may be without a member after a leader began,
// or after it was created: its agent may be about to start.
const DefaultGrace = 30 * time.Second

// contactWithout is how long a node that gossip has lost renews its lease before
// that is worth a warning: one that dies may have just done so, and one that is
// back does so before gossip knows.
const contactWithout = RenewInterval

// Config configures a Controller.
type Config struct {
	controller.Config
	Gossip Gossip
	// Leases tells of nodes that gossip has lost but that are in contact for
	// all that. Nil: gossip alone counts.
	Leases *Leases
	// Grace is DefaultGrace if 0.
	Grace time.Duration
}

// Controller sets the conditions of nodes that cannot be reached to Unknown. A
// node that comes back writes its own conditions.
type Controller struct {
	cfg   Config
	nodes corelisters.NodeLister
	loop  *controller.Loop
	now   func() time.Time

	mu      sync.Mutex
	began   time.Time          // of Run; guarded by mu
	members map[string]Member  // guarded by mu
	contact map[string]contact // without gossip, by node; guarded by mu
}

// contact is that of a node which renews its lease though gossip has lost it.
type contact struct {
	lost   time.Time // by gossip
	since  time.Time // first renewal after that
	warned bool
}

// New returns a controller that does nothing before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Check(); err != nil {
		return nil, fmt.Errorf("nodehealth controller: %w", err)
	}
	if cfg.Gossip == nil {
		return nil, errors.New("nodehealth controller: Gossip is missing")
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	nodes := cfg.Informers.Core().V1().Nodes()
	c := &Controller{cfg: cfg, nodes: nodes.Lister(), now: time.Now, contact: map[string]contact{}}
	c.loop = controller.NewLoop(controller.LoopConfig{Name: "nodehealth", Sync: c.sync, Workers: 16, Logger: cfg.Logger})
	err := controller.Watch(c.loop, nodes.Informer(), func(old, cur *corev1.Node) {
		if cur != nil && (old == nil || !unknown(cur)) {
			c.loop.Add(cur.Name)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nodehealth controller: %w", err)
	}
	return c, nil
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	poked, cancel := c.cfg.Gossip.Changes()
	defer cancel()
	c.mu.Lock()
	c.began = c.now()
	c.mu.Unlock()
	c.look()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-poked:
				c.look()
			}
		}
	})
	return c.loop.Run(ctx)
}

// look takes in what gossip says, and looks at the nodes of which it says
// something else than before.
func (c *Controller) look() {
	now := map[string]Member{}
	for _, m := range c.cfg.Gossip.Members() {
		if have, ok := now[m.Name]; ok && have.State == Alive {
			continue // of two of one name the living one counts
		}
		now[m.Name] = m
	}
	c.mu.Lock()
	before := c.members
	c.members = now
	c.mu.Unlock()
	names := maps.Clone(now)
	maps.Copy(names, before)
	for name := range names {
		if before == nil || before[name] != now[name] {
			c.loop.Add(name)
		}
	}
}

// sync marks one node if it cannot be reached.
func (c *Controller) sync(ctx context.Context, name string) error {
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	if unknown(node) {
		return nil
	}
	why, again := c.lost(node)
	if again > 0 {
		c.loop.AddAfter(name, again)
	}
	if why == "" {
		return nil
	}
	next := node.DeepCopy()
	setUnknown(next, metav1.NewTime(c.now()))
	_, err = c.cfg.Client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mark node %s as not reachable: %w", name, err)
	}
	c.cfg.Logger.Warn("node cannot be reached", "node", name, "why", why)
	return nil
}

// lost says why a node cannot be reached, "" if it can; and when to look again
// even if nothing changes.
func (c *Controller) lost(node *corev1.Node) (why string, again time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, known := c.members[node.Name]
	switch {
	case !known:
		since := c.began
		if t := node.CreationTimestamp.Time; t.After(since) {
			since = t
		}
		if left := c.cfg.Grace - c.now().Sub(since); left > 0 {
			return "", left
		}
		why = "no member of this name was seen since this server leads"
		m.Since = since
	case m.State == Alive:
		delete(c.contact, node.Name)
		return "", 0
	case m.State == Left:
		why = "it has left the cluster"
	default:
		why = "gossip does not hear of it"
	}
	if c.cfg.Leases != nil && m.State != Left {
		// Only a living node renews a lease after it was declared dead.
		if at := c.cfg.Leases.Renewed(node.Name); at.After(m.Since) {
			if left := LeaseDuration - c.now().Sub(at); left > 0 {
				with := c.contact[node.Name]
				if !with.lost.Equal(m.Since) {
					with = contact{lost: m.Since, since: at}
				}
				if at.Sub(with.since) >= contactWithout && !with.warned {
					with.warned = true
					c.cfg.Logger.Warn("gossip has lost a node that renews its lease: is its gossip port blocked (UDP and TCP)?", "node", node.Name)
				}
				c.contact[node.Name] = with
				if !with.warned {
					left = min(left, contactWithout)
				}
				return "", left
			}
		}
	}
	return why, 0
}

// reported are the conditions that a node reports itself.
var reported = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

func unknown(node *corev1.Node) bool {
	n := 0
	for _, c := range node.Status.Conditions {
		for _, t := range reported {
			if c.Type == t && c.Status == corev1.ConditionUnknown {
				n++
			}
		}
	}
	return n == len(reported)
}

// setUnknown changes what a node reported to what is known of it now.
func setUnknown(node *corev1.Node, now metav1.Time) {
	for _, t := range reported {
		found := false
		for i := range node.Status.Conditions {
			c := &node.Status.Conditions[i]
			if c.Type != t {
				continue
			}
			found = true
			if c.Status != corev1.ConditionUnknown {
				c.Status, c.LastTransitionTime = corev1.ConditionUnknown, now
				c.Reason, c.Message = "NodeStatusUnknown", "Kubelet stopped posting node status."
			}
		}
		if !found {
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: now})
		}
	}
}
