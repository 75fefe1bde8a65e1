package node

import (
	"context"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// pressure is what the Node says that it is short of.
type pressure struct{ memory, disk, pids bool }

func pressureOf(conds []v1.NodeConditionType) pressure {
	has := func(c v1.NodeConditionType) bool { return slices.Contains(conds, c) }
	return pressure{memory: has(v1.NodeMemoryPressure), disk: has(v1.NodeDiskPressure), pids: has(v1.NodePIDPressure)}
}

// evictable are the pods that can be made to go; *pod.Manager knows them.
type evictable interface {
	Views() []*pod.View
	End(uid types.UID, e pod.Eviction)
}

// evictedPatience is how long the room that an evicted pod gives is waited for, after its
// grace period, before another one goes.
const evictedPatience = 30 * time.Second

// helplessEvery is how often a node that has nothing more to give tries again.
const helplessEvery = 10 * time.Second

// keepFree measures what the node has left, says so, and makes room when there is too
// little: first by what nobody needs, then by the pod that matters least.
func (a *Agent) keepFree(ctx context.Context) {
	var state eviction.State
	var helpless time.Time // when no pod could go
	cfg := a.cfg.Eviction
	for ctx.Err() == nil {
		obs, err := a.sources.Observe()
		if err != nil {
			a.cfg.Logger.Debug("measuring what the node has left", "err", err)
		}
		var d eviction.Decision
		state, d = cfg.Decide(state, time.Now(), obs)
		a.pressed.Store(&d.Conditions)
		a.self.setPressure(pressureOf(d.Conditions))
		if len(d.Starved) > 0 && time.Since(helpless) >= helplessEvery {
			if a.makeRoom(ctx, d.Starved, obs) {
				continue // and look at once
			}
			helpless = time.Now()
		}
		if !pause(ctx, d.Again) {
			return
		}
	}
}

// makeRoom acts on the most urgent threshold; it says whether it could do
// something.
func (a *Agent) makeRoom(ctx context.Context, starved []eviction.Threshold, obs eviction.Observations) bool {
	t := starved[0]
	a.nodeEvent(v1.EventTypeWarning, "EvictionThresholdMet", "Attempting to reclaim "+string(t.Signal.Resource()))
	separate := a.sources.Separate()
	image := t.Signal == eviction.ImageFsAvailable || t.Signal == eviction.ImageFsInodesFree
	if t.Signal.Disk() && (image || !separate) {
		a.removeImages(ctx)
		fresh, err := a.sources.Observe()
		if err == nil && eviction.Relieved(a.cfg.Eviction.Thresholds, fresh) {
			a.cfg.Logger.Info("made room without evicting a pod", "signal", t.Signal)
			return true
		}
		if err == nil {
			obs = fresh
		}
	}
	pods := a.measure(ctx)
	eviction.Rank(t.Signal, separate, pods)
	for _, p := range pods {
		if pod.Critical(p.Pod) {
			continue
		}
		grace := a.cfg.Eviction.Grace(t, p.Pod)
		if had, ends := a.evicting[p.Pod.UID]; ends && had <= grace {
			continue // it has not gone in its time
		}
		a.evicting[p.Pod.UID] = grace
		text, notes := eviction.Message(t, starved, obs, p)
		a.cfg.Logger.Warn("evicting a pod", "pod", p.Pod.Namespace+"/"+p.Pod.Name, "why", text)
		a.self.recorder.AnnotatedEventf(p.Pod, notes, v1.EventTypeWarning, pod.Evicted, "%s", text)
		a.meter.Evicted(string(t.Signal))
		a.evictable.End(p.Pod.UID, pod.Eviction{Reason: pod.Evicted, Message: text, Grace: grace, Disruption: true})
		a.awaitGone(ctx, p.Pod.UID, t, grace)
		return true
	}
	a.cfg.Logger.Warn("the node runs short, and no pod may be evicted", "signal", t.Signal)
	return false
}

func (a *Agent) removeImages(ctx context.Context) {
	gc, ok := a.collector()
	if !ok {
		return
	}
	a.housework.Lock()
	defer a.housework.Unlock()
	n, err := gc.RemoveUnused(ctx, time.Now())
	if err != nil && ctx.Err() == nil {
		a.cfg.Logger.Warn("making room on the disk", "err", err)
	}
	if n > 0 {
		a.listImages()
	}
}

// awaitGone returns when nothing is left of a pod that was evicted for t, on the disk
// either, or when its time is over. If t is soft, which may give the pod minutes, it
// returns also when there is room again, and when a hard threshold is met.
func (a *Agent) awaitGone(ctx context.Context, uid types.UID, t eviction.Threshold, grace int64) {
	ctx, cancel := context.WithTimeout(ctx, evictedPatience+time.Duration(grace)*time.Second)
	defer cancel()
	ids := map[string]bool{}
	for looked := time.Now(); ; {
		if !t.Hard() && time.Since(looked) >= time.Second {
			looked = time.Now()
			obs, err := a.sources.Observe()
			if err == nil && (a.cfg.Eviction.Urgent(obs) || eviction.Relieved(a.cfg.Eviction.Thresholds, obs)) {
				return
			}
		}
		there := false
		for _, v := range a.evictable.Views() {
			if v.Pod.UID != uid {
				continue
			}
			there = v.State != pod.Gone
			for _, c := range v.Containers {
				ids[c.ID] = true
			}
		}
		if !there {
			keys, err := a.cfg.Images.Mounts()
			there = err == nil && slices.ContainsFunc(keys, func(k string) bool { return ids[k] })
		}
		if !there || !pause(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// measure tells what the running pods use. Those that were deleted or evicted and have
// time left are among them: it can be cut.
func (a *Agent) measure(ctx context.Context) (out []eviction.Pod) {
	there := map[types.UID]bool{}
	for _, v := range a.evictable.Views() {
		there[v.Pod.UID] = true
		_, evicted := a.evicting[v.Pod.UID]
		ends := v.State == pod.Stopping && (evicted || v.Pod.DeletionTimestamp != nil)
		if v.Sandbox != nil && (ends || !v.State.Final()) && ctx.Err() == nil {
			out = append(out, a.use(ctx, v))
		}
	}
	maps.DeleteFunc(a.evicting, func(uid types.UID, _ int64) bool { return !there[uid] })
	return out
}

// use is what a pod uses.
func (a *Agent) use(ctx context.Context, v *pod.View) eviction.Pod {
	p := eviction.Pod{Pod: v.Pod}
	st, err := v.Sandbox.PodStats(ctx)
	if err != nil {
		return p
	}
	p.Measured, p.Memory, p.Processes = true, int64(st.MemoryWorkingSet), int64(st.Pids)
	byID, err := v.Sandbox.Stats(ctx)
	if err != nil {
		byID = nil // the pod's sum is enough to rank it
	}
	a.useOfDisk(v, &p)
	for i := range p.Containers {
		c := &p.Containers[i]
		c.Memory = int64(byID[v.Containers[c.Name].ID].MemoryWorkingSet)
	}
	return p
}

// podsMemory is what all pods use together, and their limit; 0 is none.
func podsMemory(r pod.Runtime) func() (int64, int64, error) {
	all, ok := r.(interface{ AllStats() (runtime.Stats, error) })
	if !ok {
		return nil
	}
	return func() (int64, int64, error) {
		st, err := all.AllStats()
		return int64(st.MemoryWorkingSet), int64(st.MemoryLimit), err
	}
}
