package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/node/runtime"
)

// allocationName is the file in a pod's directory that says what the pod has
// been granted. What a pod asks for can change at any time; what it was granted
// must survive skiff.
const allocationName = "resources.json"

// allocation is what a pod has been granted, and how far that was carried out.
type allocation struct {
	// Pod and Containers are the granted resources of the pod as a whole and of
	// its containers by their names.
	Pod        *v1.ResourceRequirements           `json:"pod,omitempty"`
	Containers map[string]v1.ResourceRequirements `json:"containers"`

	// Given are the resources of containers, by ID, that were changed after their
	// start; others have what their annotation says.
	Given map[string]v1.ResourceRequirements `json:"given,omitempty"`
	// Restart are the IDs of containers that end in order to start again (with other
	// resources, another image, for a failed probe), whatever their pod's restart
	// policy says of how they end.
	Restart []string `json:"restart,omitempty"`
	// Cgroup is what the pod's cgroup was last given in the sandbox of this Attempt,
	// and GivenPod the Pod of that time; nil: what the sandbox was made with.
	Cgroup   *runtime.Resources       `json:"cgroup,omitempty"`
	GivenPod *v1.ResourceRequirements `json:"givenPod,omitempty"`
	Attempt  uint32                   `json:"attempt,omitempty"`
}

// allocationOf grants a pod what it asks for.
func allocationOf(p *v1.Pod) allocation {
	a := allocation{Pod: p.Spec.Resources.DeepCopy(), Containers: map[string]v1.ResourceRequirements{}}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			a.Containers[list[i].Name] = *list[i].Resources.DeepCopy()
		}
	}
	return a
}

// regrant gives a the resources that p asks for; what was carried out stays.
func (a allocation) regrant(p *v1.Pod) allocation {
	next := allocationOf(p)
	next.Given, next.Restart, next.Cgroup, next.GivenPod, next.Attempt = maps.Clone(a.Given), slices.Clone(a.Restart), a.Cgroup, a.GivenPod, a.Attempt
	return next
}

// apply gives p with the granted resources in place of those that it asks for;
// p itself if these are the same.
func (a *allocation) apply(p *v1.Pod) *v1.Pod {
	out := p
	change := func() {
		if out == p {
			out = p.DeepCopy()
		}
	}
	if !equality.Semantic.DeepEqual(p.Spec.Resources, a.Pod) {
		change()
		out.Spec.Resources = a.Pod.DeepCopy()
	}
	each := func(list func(*v1.Pod) []v1.Container) {
		for i := range list(p) {
			granted, ok := a.Containers[list(p)[i].Name]
			if ok && !equality.Semantic.DeepEqual(list(p)[i].Resources, granted) {
				change()
				list(out)[i].Resources = *granted.DeepCopy()
			}
		}
	}
	each(func(p *v1.Pod) []v1.Container { return p.Spec.InitContainers })
	each(func(p *v1.Pod) []v1.Container { return p.Spec.Containers })
	return out
}

// readAllocation returns nil without an error if the pod has none.
func readAllocation(dir string) (*allocation, error) {
	b, err := os.ReadFile(filepath.Join(dir, allocationName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	a := &allocation{}
	if err == nil {
		err = json.Unmarshal(b, a)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what a pod was granted: %w", err)
	}
	return a, nil
}

// write replaces the file as a whole. Without safe it may be lost in a power
// failure, after which no container has any resources; it survives skiff always.
func (a *allocation) write(dir string, safe bool) error {
	b, err := json.Marshal(a)
	if err == nil {
		err = os.MkdirAll(dir, 0o750)
	}
	if err != nil {
		return err
	}
	return replaceFile(dir, allocationName, b, safe)
}

// load takes in what an earlier agent granted to pods, before any new one is
// admitted beside them.
func (g *grants) load(pods []*v1.Pod) {
	for _, p := range pods {
		if p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed {
			continue
		}
		a, err := readAllocation(g.m.podDir(p.UID))
		if err != nil {
			g.m.cfg.Logger.Warn("a pod is granted what it asks for now", "pod", p.Namespace+"/"+p.Name, "err", err)
		}
		if a != nil {
			g.mu.Lock()
			e := &grant{allocation: *a, pod: a.apply(p)}
			if c := findCondition(p, v1.PodResizeInProgress); c != nil {
				e.granted = c.ObservedGeneration
			}
			g.pods[p.UID] = e
			g.mu.Unlock()
		}
	}
}

// allocated gives what was granted to a pod; the zero value if nothing was.
func (g *grants) allocated(uid types.UID) allocation {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.pods[uid]; e != nil {
		return e.allocation
	}
	return allocation{}
}

// record changes what is noted of how far an allocation was carried out.
func (g *grants) record(uid types.UID, change func(*allocation)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.pods[uid]
	if e == nil {
		return
	}
	a := e.allocation
	a.Given, a.Restart = maps.Clone(a.Given), slices.Clone(a.Restart)
	change(&a)
	e.allocation = a
	if err := g.m.cfg.save(&a, g.m.podDir(uid), false); err != nil {
		g.m.cfg.Logger.Warn("noting what a container was given", "pod", e.pod.Namespace+"/"+e.pod.Name, "err", err)
	}
}
