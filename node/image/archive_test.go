package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

func dockerTar(t *testing.T, images map[string]v1.Image) []byte {
	t.Helper()
	tags := map[name.Tag]v1.Image{}
	for ref, img := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		tags[tag] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiWrite(tags, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ociDir(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "myapp")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range images {
		var opts []layout.Option
		if ref != "" {
			opts = append(opts, layout.WithAnnotations(map[string]string{refNameAnnotation: ref}))
		}
		if err := p.AppendImage(img, opts...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tarDir(t *testing.T, dir string) []byte {
	t.Helper()
	var entries []entry
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		entries = append(entries, entry{name: rel, body: readFile(t, p), mode: 0o644})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, entries...)
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestImportFormats(t *testing.T) {
	shared := gzLayer(t, entry{name: "shared", body: "s"})
	a := imageOf(t, nil, shared, gzLayer(t, entry{name: "a", body: "a"}))
	b := imageOf(t, nil, shared, gzLayer(t, entry{name: "b", body: "b"}))
	docker := dockerTar(t, map[string]v1.Image{"app:1": a, "registry.example/team/b:2": b})
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	two := []string{"docker.io/library/app:1", "registry.example/team/b:2"}
	oci := ociDir(t, map[string]v1.Image{"app:1": a, "registry.example/team/b:2": b})
	for _, c := range []struct {
		name string
		path string
		tags []string
	}{
		{"docker save", write(t, "x.tar", docker), two},
		{"docker save, gzip", write(t, "x.tgz", gzipped(t, docker)), two},
		{"docker save, zstd", write(t, "x.tar.zst", zw.EncodeAll(docker, nil)), two},
		{"OCI directory", oci, two},
		{"OCI archive", write(t, "x.tar", tarDir(t, oci)), two},
		{"OCI archive, no name", write(t, "My App.oci.tar.gz", gzipped(t, tarDir(t, ociDir(t, map[string]v1.Image{"": a})))), []string{"docker.io/library/my-app:latest"}},
		{"OCI directory, tag alone", ociDir(t, map[string]v1.Image{"v3": a}), []string{"docker.io/library/myapp:v3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			imgs, err := s.Import(context.Background(), c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(imgs) != len(c.tags) {
				t.Fatalf("%d images, want %d", len(imgs), len(c.tags))
			}
			for _, tag := range c.tags {
				img, ok := s.Get(tag)
				if !ok {
					t.Errorf("%s is missing", tag)
					continue
				}
				if !img.Pinned || img.Config.Cmd[0] != "sh" {
					t.Errorf("%+v", img)
				}
				root, err := s.Mount(context.Background(), img.ID, "k")
				if err != nil {
					t.Fatal(err)
				}
				if readFile(t, root, "shared") != "s" {
					t.Error("wrong content")
				}
				if err := s.Unmount("k"); err != nil {
					t.Fatal(err)
				}
			}
			if gone, err := s.Prune(context.Background(), nil); err != nil || len(gone) != 0 {
				t.Error("imported images must be pinned:", gone, err)
			}
		})
	}
}

func TestImportRefusesOtherFiles(t *testing.T) {
	s := openStore(t)
	good := dockerTar(t, map[string]v1.Image{"app:1": imageOf(t, nil, gzLayer(t, entry{name: "f", body: strings.Repeat("text", 5000)}))})
	i := bytes.Index(good, []byte("sha256:"))
	shifted := append(bytes.Clone(good[:i+10]), good[i+11:]...)
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"text.tar":   {[]byte("hello, I am no archive"), "is no image archive"},
		"empty.tar":  {nil, "it is empty"},
		"other.tar":  {tarOf(t, entry{name: "readme", body: "x"}), "neither manifest.json"},
		"cut.tar":    {good[:len(good)/2], "is no image archive"},
		"cut.tgz":    {gzipped(t, good)[:500], "cannot be decompressed"},
		"x.tar.xz":   {[]byte("\xfd7zXZ\x00 and so on"), "xz"},
		"x.tar.bz2":  {[]byte("BZh91AY and so on"), "bzip2"},
		"shift.tar":  {shifted, "is no image archive"},
		"json.tar":   {tarOf(t, entry{name: "manifest.json", body: "{"}), "manifest.json"},
		"blob.tar":   {tarOf(t, entry{name: "manifest.json", body: `[{"Config":"c.json","Layers":["l"]}]`}), "c.json is missing"},
		"escape.tar": {tarOf(t, entry{name: "index.json", body: `{"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":1}]}`}), "is no image archive"},
	} {
		_, err := s.Import(context.Background(), write(t, name, c.body), nil)
		if !errors.Is(err, ErrNotArchive) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := s.Import(context.Background(), "/does/not/exist", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if l, err := s.List(); err != nil || len(l) != 0 {
		t.Error("images came from nowhere", l, err)
	}
}

// A layer whose content does not match the configuration is refused.
func TestImportChecksDigests(t *testing.T) {
	s := openStore(t)
	dir := ociDir(t, map[string]v1.Image{"app:1": imageOf(t, nil, plainLayer(t, entry{name: "f", body: "good"}))})
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		if b := readFile(t, p); strings.Contains(b, "good") {
			return os.WriteFile(p, []byte(strings.Replace(b, "good", "evil", 1)), 0o644)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), dir, nil); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}

func TestImportDir(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("a.tar", dockerTar(t, map[string]v1.Image{"a:1": imageOf(t, nil, gzLayer(t, entry{name: "a", body: "a"}))}))
	put("bad.tar", []byte("nothing"))
	put(".hidden", []byte("nothing"))
	imgs, err := s.ImportDir(context.Background(), dir, nil)
	if len(imgs) != 1 || !errors.Is(err, ErrNotArchive) || !strings.Contains(err.Error(), "bad.tar") {
		t.Fatal(imgs, err)
	}
	if err := os.Remove(filepath.Join(dir, "bad.tar")); err != nil {
		t.Fatal(err)
	}
	if imgs, err := s.ImportDir(context.Background(), dir, nil); len(imgs) != 0 || err != nil {
		t.Error("imported again:", imgs, err)
	}
	if imgs, err := s.ImportDir(context.Background(), filepath.Join(dir, "missing"), nil); len(imgs) != 0 || err != nil {
		t.Error("a missing folder:", imgs, err)
	}
}
