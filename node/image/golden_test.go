package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// TestGoldenIndex reads the list of images of every release.
func TestGoldenIndex(t *testing.T) {
	const id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	if golden.Update(t) {
		b, err := encodeIndex(&index{Imported: map[string]string{"/images/a.tar": "12 34"}, Images: map[string]*Image{id: {
			ID: id, RepoTags: []string{"docker.io/library/app:1"}, RepoDigests: []string{"docker.io/library/app@" + id}, Size: 1234, Created: time.Unix(1_700_000_000, 0).UTC(),
			OS: "linux", Arch: "amd64", Config: v1.ImageConfig{Entrypoint: []string{"/app"}, Env: []string{"A=b"}}, Layers: []string{id}, Pinned: true,
			PulledAt: time.Unix(1_800_000_000, 0).UTC(), Dirs: []dirAttr{{Path: "tmp", Mode: 0o1777}}}}})
		if err == nil {
			err = os.WriteFile(filepath.Join(golden.Fresh(t, "images"), "index.json"), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	golden.Each(t, "images", func(t *testing.T, dir string) {
		b, err := os.ReadFile(filepath.Join(dir, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		idx, err := decodeIndex(b)
		if err != nil {
			t.Fatal(err)
		}
		img := idx.find("app:1")
		if img == nil || img.ID != id || !img.Pinned || len(img.Layers) != 1 || img.Config.Entrypoint[0] != "/app" || img.Dirs[0].Mode != 0o1777 || idx.Imported["/images/a.tar"] != "12 34" {
			t.Errorf("%+v of %+v", img, idx)
		}
	})
}
