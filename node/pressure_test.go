package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// unusedImages is a store with images that nobody uses.
type unusedImages struct {
	noImages
	left []*image.Image
}

func (u *unusedImages) List() ([]*image.Image, error)     { return slices.Clone(u.left), nil }
func (u *unusedImages) LastUsed(i *image.Image) time.Time { return i.PulledAt }
func (u *unusedImages) InUse() (map[string]bool, error)   { return nil, nil }
func (u *unusedImages) Mounts() ([]string, error)         { return nil, nil }
func (u *unusedImages) Prune(_ context.Context, keep func(*image.Image) bool) (gone []*image.Image, err error) {
	u.left = slices.DeleteFunc(u.left, func(i *image.Image) bool {
		if keep(i) {
			return false
		}
		gone = append(gone, i)
		return true
	})
	return gone, nil
}

// setMachine writes what /proc says of a machine with 1 GiB of memory.
func setMachine(t *testing.T, proc string, availableKi int) {
	t.Helper()
	for name, text := range map[string]string{
		"meminfo": fmt.Sprintf("MemTotal: 1048576 kB\nMemAvailable: %d kB\n", availableKi),
		"loadavg": "0 0 0 1/100 1\n", "sys/kernel/pid_max": "32768\n", "sys/kernel/threads-max": "32768\n",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPressure is a node without pods on a machine that runs short of memory, and of
// disk: it says so, asks for room, takes no more pods, and says when it is over.
func TestPressure(t *testing.T) {
	proc := t.TempDir()
	machine := func(availableKi int) { setMachine(t, proc, availableKi) }
	machine(10 << 10)
	store := &unusedImages{left: []*image.Image{{ID: "sha256:old", PulledAt: time.Now().Add(-time.Hour)}, {ID: "sha256:new", PulledAt: time.Now()}}}
	c := config(t)
	c.Images = store
	list, err := eviction.Parse([]string{"memory.available<100Mi"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Eviction = &eviction.Config{Thresholds: list}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	events := record.NewFakeRecorder(100)
	a.self = newSelf(a, events)
	a.pods = pod.NewManager(pod.Config{})
	a.evictable = a.pods
	a.sources = eviction.Sources{NodeDir: t.TempDir(), ImageDir: t.TempDir(), Proc: proc}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); a.keepFree(ctx) }()
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	says := func() pressure { a.self.mu.Lock(); defer a.self.mu.Unlock(); return a.self.pressure }
	await("memory pressure", func() bool { return says().memory })
	if got := a.pressure(); !slices.Equal(got, []v1.NodeConditionType{v1.NodeMemoryPressure}) {
		t.Errorf("new pods are refused for %v", got)
	}
	select {
	case e := <-events.Events:
		if !strings.Contains(e, "EvictionThresholdMet Attempting to reclaim memory") {
			t.Errorf("event %q", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("no event")
	}
	if len(store.left) != 2 {
		t.Error("images are removed for memory")
	}
	machine(900 << 10)
	await("enough memory", func() bool { return !says().memory && len(a.pressure()) == 0 })
	cancel()
	<-done

	// Images that nobody uses go for the disk; those that were just pulled stay.
	disk, err := eviction.Parse([]string{"nodefs.available<99.99%"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !a.makeRoom(t.Context(), disk, eviction.Observations{}) {
		t.Error("room was made by images, and that is not said")
	}
	if len(store.left) != 1 || store.left[0].ID != "sha256:new" {
		t.Errorf("left are %v", store.left)
	}
}

// hogs are running pods that use memory and end when told, after their grace period.
type hogs struct {
	mu    sync.Mutex
	views map[types.UID]*pod.View
	due   map[types.UID]time.Time
	stuck bool
	freed func()   // the memory of one
	told  []string // "name grace", in order
}

type hogBox struct {
	pod.Sandbox
	bytes uint64
}

func (b hogBox) PodStats(context.Context) (runtime.Stats, error) {
	return runtime.Stats{MemoryWorkingSet: b.bytes}, nil
}
func (hogBox) Stats(context.Context) (map[string]runtime.Stats, error) { return nil, nil }

func (h *hogs) Views() (out []*pod.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for uid, v := range h.views {
		c := *v
		if due, ends := h.due[uid]; ends {
			if c.State = pod.Stopping; !h.stuck && !time.Now().Before(due) {
				h.freed()
				delete(h.views, uid)
				continue
			}
		}
		out = append(out, &c)
	}
	return out
}

func (h *hogs) End(uid types.UID, e pod.Eviction) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, fmt.Sprintf("%s %d", uid, e.Grace))
	due := time.Now().Add(time.Duration(e.Grace) * time.Second)
	if was, ends := h.due[uid]; !ends || due.Before(was) {
		h.due[uid] = due
	}
}

// TestOnePodAtATime is about who has to go while another pod ends slowly.
func TestOnePodAtATime(t *testing.T) {
	const low, lower, enough = 150 << 10, 50 << 10, 900 << 10 // KiB
	for _, tc := range []struct {
		name    string
		deleted bool               // the largest pod has an hour left
		stuck   bool               // it does not end in its time
		memory  map[int]int        // KiB that are available, by seconds
		want    map[string]float64 // who is told what, and when at the latest; nobody else is
	}{
		{"the evicted one has its time", false, false, map[int]int{0: low}, map[string]float64{"big 90": 3}},
		{"it does not end", false, true, map[int]int{0: low}, map[string]float64{"big 90": 3, "small 90": 130}},
		{"there is room before it ends", false, false, map[int]int{0: low, 5: enough, 40: lower}, map[string]float64{"big 90": 3, "big 1": 43}},
		{"a hard threshold is met meanwhile", false, false, map[int]int{0: low, 40: lower}, map[string]float64{"big 90": 3, "big 1": 43}},
		{"one that was deleted is hurried", true, false, map[int]int{0: lower}, map[string]float64{"big 1": 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proc, disk := t.TempDir(), t.TempDir()
			c := config(t)
			list, err := eviction.Parse([]string{"memory.available<100Mi"}, []string{"memory.available<200Mi"}, []string{"memory.available=1ms"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.Eviction = &eviction.Config{Thresholds: list, MaxPodGrace: 90}
			c.Images = &unusedImages{}
			a, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				a.self = newSelf(a, record.NewFakeRecorder(1000))
				grace := int64(3600)
				h := &hogs{views: map[types.UID]*pod.View{}, due: map[types.UID]time.Time{}, stuck: tc.stuck, freed: func() { setMachine(t, proc, enough) }}
				for name, bytes := range map[types.UID]uint64{"big": 500 << 20, "small": 100 << 20} {
					p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: string(name), UID: name}, Spec: v1.PodSpec{TerminationGracePeriodSeconds: &grace}}
					h.views[name] = &pod.View{Pod: p, Sandbox: hogBox{bytes: bytes}, State: pod.Running}
				}
				if tc.deleted {
					now := metav1.Now()
					h.views["big"].Pod.DeletionTimestamp = &now
					h.due["big"] = time.Now().Add(time.Hour)
				}
				a.evictable = h
				a.sources = eviction.Sources{NodeDir: disk, ImageDir: disk, Proc: proc}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				setMachine(t, proc, tc.memory[0])
				go a.keepFree(ctx)
				when := map[string]float64{}
				for s := range 150 {
					if kib, ok := tc.memory[s]; ok {
						setMachine(t, proc, kib)
					}
					for range 10 {
						time.Sleep(100 * time.Millisecond)
						h.mu.Lock()
						for _, told := range h.told {
							if _, known := when[told]; !known {
								when[told] = float64(s) + 1
							}
						}
						h.mu.Unlock()
					}
				}
				for told, most := range tc.want {
					if at, ok := when[told]; !ok || at > most {
						t.Errorf("%s: after %v s, want within %v", told, at, most)
					}
				}
				for told := range when {
					if _, ok := tc.want[told]; !ok {
						t.Errorf("%s after %v s", told, when[told])
					}
				}
				if at, ok := when["small 90"]; ok && at < 100 {
					t.Errorf("the small one goes after %v s, before the large one's time is over", at)
				}
			})
		})
	}
}
