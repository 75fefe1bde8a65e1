package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/runtime"
)

// ResourcePID is the name under which process numbers are kept back from pods.
const ResourcePID v1.ResourceName = "pid"

// declaredFeatures are the gates of newer parts of the API that this node honours,
// sorted; servers look here before they let a pod use one.
var declaredFeatures = []string{
	"InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers", "RestartAllContainersOnContainerExits",
}

// hugePages gives the machine's huge pages, if the runtime can limit what a
// container takes of them: by this no pod gets another's.
func hugePages(root string, limits bool) (v1.ResourceList, error) {
	out := v1.ResourceList{}
	dirs, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) || !limits {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		size, ok := strings.CutPrefix(d.Name(), "hugepages-")
		kib, err := strconv.ParseInt(strings.TrimSuffix(size, "kB"), 10, 64)
		if !ok || err != nil {
			continue
		}
		n, err := strconv.ParseInt(readLine(filepath.Join(root, d.Name(), "nr_hugepages")), 10, 64)
		if err != nil {
			continue
		}
		name := v1.ResourceName(v1.ResourceHugePagesPrefix + resource.NewQuantity(kib<<10, resource.BinarySI).String())
		out[name] = *resource.NewQuantity(n*kib<<10, resource.BinarySI)
	}
	return out, nil
}

// reserve takes from the capacity what is kept back: from all pods, for the system
// and for skiff, and what the hard eviction thresholds need. Huge pages are no
// memory for others.
func reserve(capacity, reserved v1.ResourceList, thresholds []eviction.Threshold) (v1.ResourceList, error) {
	out := capacity.DeepCopy()
	for name, q := range reserved {
		have, ok := out[name]
		if !ok {
			continue // pid
		}
		if q.Cmp(have) > 0 {
			return nil, fmt.Errorf("--kube-reserved and --system-reserved keep back more %s, %s, than this machine has, %s", name, q.String(), have.String())
		}
		have.Sub(q)
		out[name] = have
	}
	memory := out[v1.ResourceMemory]
	for name, q := range capacity {
		if strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			memory.Sub(q)
		}
	}
	out[v1.ResourceMemory] = memory
	for name, signal := range map[v1.ResourceName]eviction.Signal{v1.ResourceMemory: eviction.MemoryAvailable, v1.ResourceEphemeralStorage: eviction.NodeFsAvailable} {
		q, all := out[name], capacity[name]
		q.Sub(*resource.NewQuantity(eviction.Reserved(thresholds, signal, all.Value()), q.Format))
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		out[name] = q
	}
	return out, nil
}

// podsLimits are those of all pods together: what is reserved is never theirs. The
// room that eviction needs is, for a moment: else the kernel would end processes
// before a pod is evicted.
func podsLimits(capacity, reserved v1.ResourceList, pids int64) runtime.Resources {
	left := func(name v1.ResourceName) *resource.Quantity {
		q := capacity[name].DeepCopy()
		if r, ok := reserved[name]; ok {
			q.Sub(r)
		}
		return &q
	}
	r := runtime.Resources{CPUShares: max(2, left(v1.ResourceCPU).MilliValue()*1024/1000), MemoryLimit: left(v1.ResourceMemory).Value()}
	if kept, ok := reserved[ResourcePID]; ok && pids > kept.Value() {
		r.PidsLimit = pids - kept.Value()
	} else if pids > 0 {
		r.PidsLimit = pids
	}
	return r
}

// pidCapacity is how many processes the machine can have; 0 if it does not say.
func pidCapacity() int64 {
	var least int64
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		n, err := strconv.ParseInt(readLine(file), 10, 64)
		if err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

// classes can limit pods of a class together; *runtime.Runtime, wrapped, does.
type classes interface {
	SetClass(class string, r runtime.Resources) error
}

const enforceRetry = time.Minute

// enforce limits all pods together. The memory that pods use already may be more
// than they may use now: then it is tried again.
func (a *Agent) enforce(ctx context.Context) {
	c, ok := a.cfg.Runtime.(classes)
	if !ok {
		return
	}
	limits := podsLimits(a.machine.capacity, a.cfg.Reserved, pidCapacity())
	told := false
	for {
		err := errors.Join(c.SetClass("", limits), c.SetClass(runtime.BestEffort, runtime.Resources{CPUShares: 2}))
		if err == nil {
			if told {
				a.nodeEvent(v1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
			}
			return
		}
		if !told {
			a.cfg.Logger.Warn("limiting what all pods take together, trying again", "err", err, "every", enforceRetry)
			a.nodeEvent(v1.EventTypeWarning, "FailedNodeAllocatableEnforcement", "Failed to update Node Allocatable Limits: "+err.Error())
			told = true
		}
		if !pause(ctx, enforceRetry) {
			return
		}
	}
}
