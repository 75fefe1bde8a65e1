package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func add(t *testing.T, s *Store, tag string, pinned bool, layers ...v1.Layer) *Image {
	t.Helper()
	img, err := s.ImportImage(context.Background(), imageOf(t, nil, layers...), []string{tag}, pinned)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "nginx:1": "docker.io/library/nginx:1", "me/app": "docker.io/me/app:latest",
		"localhost/app:2": "localhost/app:2", "r.io:5000/a/b:c": "r.io:5000/a/b:c",
	} {
		if got, err := Normalize(in); got != want || err != nil {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func TestTagsAndPrune(t *testing.T) {
	s := openStore(t)
	ctx := context.Background()
	shared := plainLayer(t, entry{name: "s", body: "s"})
	a := add(t, s, "app:1", false, shared, plainLayer(t, entry{name: "a", body: "a"}))
	b := add(t, s, "app:2", true, shared)
	add(t, s, "also:2", true, shared)
	if got, _ := s.Get("app:2"); len(got.RepoTags) != 2 || got.ID != b.ID {
		t.Errorf("%+v", got)
	}
	c := add(t, s, "app:1", false, plainLayer(t, entry{name: "c", body: "c"})) // the tag moves
	if got, _ := s.Get("app:1"); got.ID != c.ID {
		t.Error("the tag did not move")
	}
	if got, ok := s.Get(a.ID); !ok || len(got.RepoTags) != 0 {
		t.Errorf("the old image: %+v %v", got, ok)
	}
	if _, err := s.Mount(ctx, c.ID, "k"); err != nil {
		t.Fatal(err)
	}
	gone, err := s.Prune(ctx, nil)
	if err != nil || len(gone) != 1 || gone[0].ID != a.ID {
		t.Fatal("pruned:", gone, err)
	}
	if !s.hasLayer(b.Layers[0]) || s.hasLayer(a.Layers[1]) {
		t.Error("shared layers must stay, others go")
	}
	if err := s.Remove(ctx, "app:2"); err != nil { // one of two tags
		t.Fatal(err)
	}
	if _, ok := s.Get("also:2"); !ok {
		t.Error("the other tag is gone too")
	}
	if err := s.Remove(ctx, "nothing:1"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Pin("also:2", false); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Prune(ctx, func(i *Image) bool { return i.ID == b.ID }); err != nil || len(gone) != 0 {
		t.Error("kept images are pruned:", gone, err)
	}
	if gone, err := s.Prune(ctx, nil); err != nil || len(gone) != 1 {
		t.Error("unpinned image:", gone, err)
	}
}

// What a crash leaves is removed by the next Open; what is in use is not.
func TestCrashLeftovers(t *testing.T) {
	s := openStore(t)
	img := add(t, s, "app:1", true, plainLayer(t, entry{name: "a", body: "a"}))
	root, err := s.Mount(context.Background(), img.ID, "alive")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"layers/abcd.tmp/fs", "layers/abcd/fs", "mounts/dead/upper", "tmp/import-1"} {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool := s.cfg
	tool.Owner = false
	if _, err := Open(tool); err != nil {
		t.Fatal(err)
	}
	if !exists(s.path("mounts/dead")) || exists(s.path("layers/abcd.tmp")) || exists(s.path("layers/abcd")) || exists(s.path("tmp/import-1")) {
		t.Error("a tool beside the owner removes layers' leftovers, never mounts")
	}
	if _, err := Open(s.cfg); err != nil {
		t.Fatal(err)
	}
	if exists(s.path("mounts/dead")) || readFile(t, root, "a") != "a" {
		t.Error("the owner removes dead mounts only")
	}
	// A pull under way protects layers without an image.
	unlock, err := s.pulling()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path("layers/ffff.tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(); err != nil || !exists(s.path("layers/ffff.tmp")) {
		t.Error("swept during a pull", err)
	}
	unlock()
	if err := os.WriteFile(s.path("index.json"), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(tool); err == nil {
		t.Error("a tool accepts a damaged index")
	}
	if o, err := Open(s.cfg); err != nil || !exists(s.path("index.json.damaged")) {
		t.Errorf("a damaged index is not put aside: %v", err)
	} else if _, ok := o.Get("app:1"); ok || readFile(t, root, "a") != "a" {
		t.Error("the container lost its layers, or the image is there")
	}
}

// Many layers do not fit into the old mount call's page.
func TestManyLayers(t *testing.T) {
	s := openStore(t)
	var layers []v1.Layer
	for i := range 100 {
		layers = append(layers, plainLayer(t, entry{name: fmt.Sprintf("f%d", i), body: "x"}, entry{name: "last", body: fmt.Sprint(i)}))
	}
	img := add(t, s, "many:1", false, layers...)
	check := func(root string) {
		t.Helper()
		if readFile(t, root, "last") != "99" || !exists(root, "f0") {
			t.Error("wrong content")
		}
	}
	root, err := s.Mount(context.Background(), img.ID, "new")
	if err != nil {
		t.Fatal(err)
	}
	check(root)
	var lower []string
	for i := len(img.Layers) - 1; i >= 0; i-- {
		lower = append(lower, s.path("layers", layerName(img.Layers[i]), "fs"))
	}
	for _, d := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(s.path("mounts/old", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := overlayOld(lower, s.path("mounts/old/upper"), s.path("mounts/old/work"), s.path("mounts/old/rootfs")); err != nil {
		t.Fatal("the old mount call:", err)
	}
	check(s.path("mounts/old/rootfs"))
}

func TestEmptyImageAndUsage(t *testing.T) {
	s := openStore(t)
	img := add(t, s, "scratch:1", false)
	root, err := s.Mount(context.Background(), img.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/f", make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	b, n, err := s.MountUsage("k")
	if err != nil || b < 100_000 || n != 2 {
		t.Error(b, n, err)
	}
	for _, key := range []string{"", "..", "a/b", ".x"} {
		if _, err := s.Mount(context.Background(), img.ID, key); err == nil {
			t.Errorf("key %q is accepted", key)
		}
	}
	if err := s.Unmount("never"); err != nil {
		t.Error(err)
	}
}

// A layer that uses a directory without containing it does not change how the
// directory looks.
func TestImpliedDirectories(t *testing.T) {
	s := openStore(t)
	img := add(t, s, "app:1", false,
		plainLayer(t, entry{name: "tmp/", mode: 0o1777}, entry{name: "srv/", mode: 0o750, uid: 7}, entry{name: "srv/data/", mode: 0o700, uid: 8}),
		plainLayer(t, entry{name: "tmp/file", body: "x"}, entry{name: "srv/data/deep", body: "y"}, entry{name: "fresh/new", body: "z"}))
	root, err := s.Mount(context.Background(), img.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string][2]uint32{"tmp": {0o1777, 0}, "srv": {0o750, 7}, "srv/data": {0o700, 8}, "fresh": {0o755, 0}} {
		var st syscall.Stat_t
		if err := syscall.Stat(root+"/"+p, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want[0] || st.Uid != want[1] {
			t.Errorf("%s: mode %o uid %d, want %o %d", p, st.Mode&0o7777, st.Uid, want[0], want[1])
		}
	}
	if readFile(t, root, "tmp/file")+readFile(t, root, "srv/data/deep")+readFile(t, root, "fresh/new") != "xyz" {
		t.Error("files are missing")
	}
}
