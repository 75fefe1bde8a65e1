package image

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm/damage"
)

// TestDamagedStore: whatever happens to the list of images or to what is known of
// layers, the node starts, an image is as it was or has to come again, and the
// layers of containers that run stay.
func TestDamagedStore(t *testing.T) {
	s := openStore(t)
	img := add(t, s, "app:1", true, plainLayer(t, entry{name: "a", body: "a"}), plainLayer(t, entry{name: "b", body: "b"}))
	mount := s.path("mounts", "c1") // as of a container that runs; sweepMounts would remove it, so it is made after each start
	layers := strings.Join([]string{layerName(img.Layers[1]), layerName(img.Layers[0])}, "\n")
	cases, err := damage.Cases(s.cfg.Dir, "", func(file string) bool {
		return filepath.Base(file) != "index.json" && filepath.Base(file) != "layer.json"
	})
	if err != nil {
		t.Fatal(err)
	}
	kept, gone := 0, 0
	for i, d := range cases {
		if testing.Short() && i%5 != 0 {
			continue
		}
		dir := filepath.Join(t.TempDir(), "images")
		if err := os.CopyFS(dir, os.DirFS(s.cfg.Dir)); err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(dir); err != nil {
			t.Fatal(err)
		}
		o, err := Open(Config{Dir: dir, Owner: true, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Errorf("%s: the store is not opened: %v", d, err)
			continue
		}
		if got, ok := o.Get("app:1"); !ok {
			gone++
		} else if kept++; !reflect.DeepEqual(got, img) {
			t.Errorf("%s: the image is another: %+v", d, got)
		}
	}
	t.Logf("%d damages: the image is there after %d, comes again after %d", len(cases), kept, gone)
	// The list is lost while a container runs.
	if err := os.Remove(s.path("index.json")); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"layers", "image"} {
		if err := os.MkdirAll(mount, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mount, file), []byte(layers), 0o644); err != nil {
			t.Fatal(err)
		}
		s.cached = nil
		if err := s.sweep(); err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Layers {
			if !s.hasLayer(l) {
				t.Errorf("a layer below a running container was removed")
			}
		}
		if err := os.RemoveAll(mount); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweep(); err != nil || s.hasLayer(img.Layers[0]) {
		t.Errorf("a layer that nobody uses stays: %v", err)
	}
}
