package imagegc

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/node/image"
)

// fakeStore is a disk of 1000 bytes with images on it.
type fakeStore struct {
	list  []*image.Image
	used  map[string]time.Time
	inUse map[string]bool
	other int64 // bytes of other things
	begun string
	err   error
}

func (f *fakeStore) List() ([]*image.Image, error) { return slices.Clone(f.list), nil }
func (f *fakeStore) LastUsed(i *image.Image) time.Time {
	if t, ok := f.used[i.ID]; ok {
		return t
	}
	return i.PulledAt
}
func (f *fakeStore) InUse() (map[string]bool, error) { return f.inUse, nil }
func (f *fakeStore) Prune(_ context.Context, keep func(*image.Image) bool) (gone []*image.Image, err error) {
	if f.err != nil {
		return nil, f.err
	}
	f.list = slices.DeleteFunc(f.list, func(i *image.Image) bool {
		if keep(i) || i.Pinned || i.ID == f.begun {
			return false
		}
		gone = append(gone, i)
		return true
	})
	return gone, nil
}
func (f *fakeStore) disk() (free, size int64, err error) {
	free = 1000 - f.other
	for _, i := range f.list {
		free -= i.Size
	}
	return free, 1000, nil
}

func TestCollect(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	const hour, day = time.Hour, 24 * time.Hour
	img := func(id string, size int64, pulled time.Duration) *image.Image {
		return &image.Image{ID: "sha256:" + id, Size: size, PulledAt: ago(pulled), RepoTags: []string{"docker.io/library/" + id + ":latest"}}
	}
	pinned := img("pinned", 200, day)
	pinned.Pinned = true
	for _, tc := range []struct {
		name   string
		policy Policy
		store  fakeStore
		wanted []string
		left   string // in the order of the list
		event  string
		errs   string
		all    bool // RemoveUnused
	}{
		{name: "there is room", policy: Default, store: fakeStore{list: []*image.Image{img("a", 800, day)}}, left: "a"},
		{name: "down to the low threshold, the least recently used first", policy: Default,
			store: fakeStore{other: 400, list: []*image.Image{img("new", 150, hour), img("old", 150, day), img("older", 150, 2*day), img("used", 50, 3*day)},
				used: map[string]time.Time{"sha256:used": ago(time.Minute)}}, left: "new old used"},
		{name: "as many as it takes", policy: Default,
			store: fakeStore{other: 750, list: []*image.Image{img("a", 50, day), img("b", 50, 2*day), img("c", 50, 3*day)}}, left: "a"},
		{name: "pinned, mounted and wanted ones stay", policy: Default,
			store:  fakeStore{other: 300, list: []*image.Image{pinned, img("mounted", 200, day), img("wanted", 200, day), img("byid", 50, day), img("idle", 50, hour)}, inUse: map[string]bool{"sha256:mounted": true}},
			wanted: []string{"wanted", "sha256:byid"}, left: "pinned mounted wanted byid", event: "FreeDiskSpaceFailed",
			errs: "Insufficient free disk space on the node's image filesystem (100% of 1k used). Failed to free sufficient space by deleting unused images (freed 50 bytes)."},
		{name: "too young", policy: Default, store: fakeStore{other: 100, list: []*image.Image{img("young", 850, time.Minute)}}, left: "young", event: "FreeDiskSpaceFailed", errs: "freed 0 bytes"},
		{name: "taken into use meanwhile", policy: Default, store: fakeStore{other: 500, list: []*image.Image{img("a", 200, day), img("b", 200, hour)}, begun: "sha256:a"}, left: "a"},
		{name: "too old", policy: Policy{High: 85, Low: 80, MaxAge: 2 * day}, store: fakeStore{list: []*image.Image{img("a", 10, day), img("b", 10, 3*day), img("c", 10, 9*day)},
			used: map[string]time.Time{"sha256:c": ago(day)}}, left: "a c"},
		{name: "pulled in the future: the clock was set back", policy: Default, store: fakeStore{other: 500, list: []*image.Image{img("a", 400, -day), img("b", 40, hour)}}, left: ""},
		{name: "the store fails", policy: Default, store: fakeStore{other: 500, list: []*image.Image{img("a", 400, day)}, err: errors.New("read-only")}, left: "a", errs: "removing image docker.io/library/a:latest: read-only"},
		{name: "all that is unused", policy: Default, all: true, store: fakeStore{list: []*image.Image{pinned, img("a", 1, day), img("b", 1, hour), img("young", 1, time.Second)}}, left: "pinned young"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var events []string
			c := &Collector{Policy: tc.policy, Store: &tc.store, Wanted: func() []string { return tc.wanted }, Disk: tc.store.disk,
				Event: func(_, reason, _ string) { events = append(events, reason) }, Logger: slog.New(slog.DiscardHandler)}
			before := len(tc.store.list)
			collect := c.Collect
			if tc.all {
				collect = c.RemoveUnused
			}
			n, err := collect(t.Context(), now)
			if (err == nil) != (tc.errs == "") || err != nil && !strings.Contains(err.Error(), tc.errs) {
				t.Errorf("error %v, want %q", err, tc.errs)
			}
			var left []string
			for _, i := range tc.store.list {
				left = append(left, strings.TrimPrefix(i.ID, "sha256:"))
			}
			if strings.Join(left, " ") != tc.left {
				t.Errorf("left are %q, want %q", strings.Join(left, " "), tc.left)
			}
			if n != before-len(left) {
				t.Errorf("says %d are removed, %d are", n, before-len(left))
			}
			if strings.Join(events, " ") != tc.event {
				t.Errorf("events %q, want %q", events, tc.event)
			}
		})
	}
}

func TestNoDisk(t *testing.T) {
	var reason string
	c := &Collector{Policy: Default, Store: &fakeStore{}, Wanted: func() []string { return nil }, Disk: func() (int64, int64, error) { return 0, 0, nil },
		Event: func(_, r, _ string) { reason = r }, Logger: slog.New(slog.DiscardHandler)}
	if _, err := c.Collect(t.Context(), time.Now()); err == nil || reason != "InvalidDiskCapacity" {
		t.Errorf("%v, event %q", err, reason)
	}
	if c.Full() {
		t.Error("a disk without a size is not full")
	}
}

func TestPolicyCheck(t *testing.T) {
	for _, tc := range []struct {
		p    Policy
		want string
	}{
		{Default, ""},
		{Policy{High: 101, Low: 80}, "--image-gc-high-threshold 101"},
		{Policy{High: 85, Low: -1}, "--image-gc-low-threshold -1"},
		{Policy{High: 80, Low: 80}, "--image-gc-low-threshold 80: want less than"},
		{Policy{High: 85, Low: 80, MinAge: -1}, "--minimum-image-ttl-duration"},
		{Policy{High: 85, Low: 80, MaxAge: -1}, "--image-maximum-gc-age"},
		{Policy{High: 85, Low: 80, MinAge: time.Hour, MaxAge: time.Minute}, "--image-maximum-gc-age 1m0s: want more than --minimum-image-ttl-duration"},
	} {
		err := tc.p.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.p, err, tc.want)
		}
	}
}
