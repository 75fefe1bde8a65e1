package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/pod"
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

// TestPressure is a node without pods on a machine that runs short of memory, and of
// disk: it says so, asks for room, takes no more pods, and says when it is over.
func TestPressure(t *testing.T) {
	proc := t.TempDir()
	machine := func(availableKi int) {
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
