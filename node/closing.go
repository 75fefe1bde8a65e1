package node

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/shutdown"
)

// tellPatience is how long a pod that has ended holds up a shutdown until the
// API knows.
const tellPatience = 2 * time.Second

// closing is what a shutdown of the machine does to the node.
type closing struct {
	a *Agent

	mu    sync.Mutex
	ended map[types.UID]time.Time // when it was seen first
}

func (a *Agent) watchShutdown() *shutdown.Watcher {
	return shutdown.New(shutdown.Config{Periods: a.cfg.Shutdown, Logger: a.cfg.Logger,
		Node: &closing{a: a, ended: map[types.UID]time.Time{}}})
}

// Pods implements shutdown.Node.
func (c *closing) Pods() (out []*v1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, v := range c.a.pods.Views() {
		uid := v.Pod.UID
		switch v.State {
		case pod.Gone:
			continue
		case pod.Stopped:
			if c.ended[uid].IsZero() {
				c.ended[uid] = now
			}
			if now.Sub(c.ended[uid]) > tellPatience {
				continue
			}
		}
		out = append(out, v.Pod)
	}
	return out
}

// End implements shutdown.Node.
func (c *closing) End(uid types.UID, grace int64) {
	c.a.pods.End(uid, pod.Eviction{Reason: shutdown.Reason, Message: shutdown.Message, Grace: grace, Disruption: true})
}

// Changed implements shutdown.Node.
func (c *closing) Changed(now bool) {
	what := "Shutdown manager detected shutdown event"
	if !now {
		what = "Shutdown manager detected shutdown cancellation"
	}
	c.a.cfg.Logger.Info("shutdown of this machine", "announced", now)
	c.a.nodeEvent(v1.EventTypeNormal, "NodeShutdown", what)
	c.a.self.poke()
	if now {
		return
	}
	// Nobody makes the pods of manifests anew.
	for _, p := range c.a.pods.StaticPods() {
		if p.Status.Reason == shutdown.Reason || p.Status.Reason == shutdown.NotAdmitted {
			again := p.DeepCopy()
			again.DeletionTimestamp, again.DeletionGracePeriodSeconds, again.Status = nil, nil, v1.PodStatus{Phase: v1.PodPending}
			c.a.pods.RemoveStatic(p.UID)
			c.a.pods.AddStatic(again)
		}
	}
}

// isClosing says that the machine is being shut down.
func (a *Agent) isClosing() bool { return a.shutdown != nil && a.shutdown.Closing() }

// runShutdown watches for shutdowns until ctx ends.
func (a *Agent) runShutdown(ctx context.Context) error { return a.shutdown.Run(ctx) }
