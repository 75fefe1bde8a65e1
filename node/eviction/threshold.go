package eviction

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something of which the node can run short.
type Signal string

// The signals, named as in kubelet's flags.
const (
	MemoryAvailable   Signal = "memory.available"
	PodsMemory        Signal = "allocatableMemory.available" // what is left below the limit of all pods together
	NodeFsAvailable   Signal = "nodefs.available"
	NodeFsInodesFree  Signal = "nodefs.inodesFree"
	ImageFsAvailable  Signal = "imagefs.available"
	ImageFsInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// Names of resources that are no resources of the API, in messages.
const (
	inodes v1.ResourceName = "inodes"
	pids   v1.ResourceName = "pids"
)

// signals in the order in which they are acted upon.
var signals = []struct {
	name      Signal
	resource  v1.ResourceName
	condition v1.NodeConditionType
}{
	{MemoryAvailable, v1.ResourceMemory, v1.NodeMemoryPressure},
	{PodsMemory, v1.ResourceMemory, v1.NodeMemoryPressure},
	{NodeFsAvailable, v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	{ImageFsAvailable, v1.ResourceEphemeralStorage, v1.NodeDiskPressure},
	{NodeFsInodesFree, inodes, v1.NodeDiskPressure},
	{ImageFsInodesFree, inodes, v1.NodeDiskPressure},
	{PIDAvailable, pids, v1.NodePIDPressure},
}

func (s Signal) rank() int {
	for i := range signals {
		if signals[i].name == s {
			return i
		}
	}
	return -1
}

// Resource is what the signal is about, as messages name it.
func (s Signal) Resource() v1.ResourceName { return signals[s.rank()].resource }

// Condition is what a Node says that is short of it.
func (s Signal) Condition() v1.NodeConditionType { return signals[s.rank()].condition }

// Disk says whether room for files is meant.
func (s Signal) Disk() bool { return s.Condition() == v1.NodeDiskPressure }

// Value is a quantity (bytes or a number), or a part of the capacity.
type Value struct {
	Quantity int64
	Part     float64 // of the capacity; used when Quantity is 0
}

// Of returns the quantity meant.
func (v Value) Of(capacity int64) int64 {
	if v.Quantity != 0 {
		return v.Quantity
	}
	return int64(v.Part * float64(capacity))
}

// Threshold is met when less than Value is available. It is acted upon when it was
// met for Grace; Reclaim more than Value must be available until it is no longer met.
type Threshold struct {
	Signal  Signal
	Value   Value
	Grace   time.Duration // 0: a hard threshold
	Reclaim Value
}

// Hard says that there is no time for grace.
func (t Threshold) Hard() bool { return t.Grace == 0 }

// Config are the settings of a node.
type Config struct {
	Thresholds []Threshold
	// Transition is how long a condition stays after it was seen last.
	Transition time.Duration
	// MaxPodGrace, in seconds, bounds the grace period of a pod that is evicted for a
	// soft threshold.
	MaxPodGrace int64
}

// Defaults of the flags, as kubelet has them; the last is skiff's own, since a node
// without process numbers cannot be managed any more.
var (
	DefaultHard       = []string{"memory.available<100Mi", "nodefs.available<10%", "nodefs.inodesFree<5%", "imagefs.available<15%", "imagefs.inodesFree<5%", "pid.available<10%"}
	DefaultTransition = 5 * time.Minute
)

// Default is what holds without any flag.
func Default() Config {
	list, err := Parse(DefaultHard, nil, nil, nil)
	if err != nil {
		panic(err) // they are constants
	}
	return Config{Thresholds: list, Transition: DefaultTransition}
}

// Parse reads the flags: hard and soft are SIGNAL<VALUE, grace is SIGNAL=DURATION and
// reclaim SIGNAL=VALUE. Each error names its flag.
func Parse(hard, soft, grace, reclaim []string) ([]Threshold, error) {
	var out []Threshold
	for _, f := range []struct {
		flag string
		list []string
		soft bool
	}{{"eviction-hard", hard, false}, {"eviction-soft", soft, true}} {
		seen := map[Signal]bool{}
		for _, s := range f.list {
			if s == "" {
				continue
			}
			sig, text, err := split(f.flag, strings.Replace(s, "=", "<", 1), "<") // maps in files come with =
			if err != nil {
				return nil, err
			}
			if seen[sig] {
				return nil, fmt.Errorf("--%s: %s is given twice", f.flag, sig)
			}
			seen[sig] = true
			v, err := parseValue(text)
			switch {
			case err != nil:
				return nil, fmt.Errorf("--%s %q: %w", f.flag, s, err)
			case v == Value{} && strings.HasSuffix(text, "%"), v.Part >= 1:
				continue // 0% and 100% turn a signal off
			case v == Value{}:
				return nil, fmt.Errorf("--%s %q: want a quantity above 0; 0%% turns the signal off", f.flag, s)
			}
			t := Threshold{Signal: sig, Value: v}
			if f.soft {
				t.Grace = -1 // until its flag is read
			}
			out = append(out, t)
		}
	}
	graces := map[Signal]time.Duration{}
	for _, s := range grace {
		if s == "" {
			continue
		}
		sig, text, err := split("eviction-soft-grace-period", s, "=")
		if err != nil {
			return nil, err
		}
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("--eviction-soft-grace-period %q: want a duration above 0 such as 1m30s", s)
		}
		graces[sig] = d
	}
	reclaims := map[Signal]Value{}
	for _, s := range reclaim {
		if s == "" {
			continue
		}
		sig, text, err := split("eviction-minimum-reclaim", s, "=")
		if err != nil {
			return nil, err
		}
		if reclaims[sig], err = parseValue(text); err != nil {
			return nil, fmt.Errorf("--eviction-minimum-reclaim %q: %w", s, err)
		}
	}
	has := func(list []string, sig Signal) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			n, _, _ := strings.Cut(strings.Replace(s, "=", "<", 1), "<")
			return n == string(sig)
		})
	}
	for sig := range graces {
		if !has(soft, sig) {
			return nil, fmt.Errorf("--eviction-soft-grace-period names %s, for which --eviction-soft has no threshold", sig)
		}
	}
	for i := range out {
		t := &out[i]
		if t.Grace < 0 {
			d, ok := graces[t.Signal]
			if !ok {
				return nil, fmt.Errorf("--eviction-soft %s: give its grace period too, as in --eviction-soft-grace-period %s=1m30s", t.Signal, t.Signal)
			}
			t.Grace = d
		}
		t.Reclaim = reclaims[t.Signal]
	}
	for _, t := range out {
		if t.Signal == MemoryAvailable && t.Hard() { // holds for the pods' own limit too
			t.Signal = PodsMemory
			out = append(out, t)
		}
	}
	return out, nil
}

func split(flag, s, sep string) (Signal, string, error) {
	name, text, ok := strings.Cut(s, sep)
	if !ok {
		return "", "", fmt.Errorf("--%s %q: want SIGNAL%sVALUE", flag, s, sep)
	}
	sig := Signal(strings.TrimSpace(name))
	if sig.rank() < 0 || sig == PodsMemory {
		var known []string
		for _, k := range signals {
			if k.name != PodsMemory {
				known = append(known, string(k.name))
			}
		}
		return "", "", fmt.Errorf("--%s %q: no signal %q, there are %s", flag, s, sig, strings.Join(known, ", "))
	}
	return sig, strings.TrimSpace(text), nil
}

func parseValue(text string) (Value, error) {
	if p, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(p, 64)
		if err != nil || math.IsNaN(f) || f < 0 || f > 100 {
			return Value{}, fmt.Errorf("%q is no percentage from 0%% to 100%%", text)
		}
		return Value{Part: f / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Value{}, fmt.Errorf("%q is no quantity such as 500Mi and no percentage", text)
	}
	return Value{Quantity: q.Value()}, nil
}

// Reserved is how much of a resource the hard threshold of a signal keeps from pods;
// it is no part of what a node can allocate to them.
func Reserved(thresholds []Threshold, sig Signal, capacity int64) int64 {
	for _, t := range thresholds {
		if t.Signal == sig && t.Hard() {
			return min(capacity, t.Value.Of(capacity))
		}
	}
	return 0
}
