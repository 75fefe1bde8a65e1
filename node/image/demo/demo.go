// Package demo holds skiff's built-in images: skiff.local/hello:v1 and :v2,
// the program cmd/hello in one layer that both share. They are made from the
// binary inside skiff, so a first try needs neither registry nor internet.
package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skiff-sh/skiff/node/image"
)

// The images' names.
const (
	HelloV1 = "skiff.local/hello:v1"
	HelloV2 = "skiff.local/hello:v2"
)

// Port is where hello listens.
const Port = 8080

// contentLabel holds the digest of the packed program an image was made of.
const contentLabel = "sh.skiff.hello.content"

// The directory always holds a README, so that it can be embedded before the
// program is built.
//
//go:embed embedded
var embedded embed.FS

// ErrNotBuilt means that this binary was built without the program inside.
var ErrNotBuilt = errors.New("this binary was built without the hello program, so skiff.local/hello is missing: build it with `make build`")

// Ensure makes the images that the store does not have yet, pinned. With the
// images present it costs a few milliseconds.
func Ensure(ctx context.Context, s *image.Store) error {
	packed, err := embedded.ReadFile("embedded/hello.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotBuilt
	}
	if err != nil {
		return err
	}
	return ensure(ctx, s, packed)
}

func ensure(ctx context.Context, s *image.Store, packed []byte) error {
	sum := sha256.Sum256(packed)
	content := hex.EncodeToString(sum[:])
	var layer v1.Layer
	for _, b := range []struct{ tag, version string }{{HelloV1, "v1"}, {HelloV2, "v2"}} {
		if have, ok := s.Get(b.tag); ok && have.Pinned && have.Config.Labels[contentLabel] == content {
			continue
		}
		if layer == nil {
			var err error
			if layer, err = helloLayer(packed); err != nil {
				return fmt.Errorf("built-in image %s: %w", b.tag, err)
			}
		}
		img, err := helloImage(layer, b.version, content)
		if err == nil {
			_, err = s.ImportImage(ctx, img, []string{b.tag}, true)
		}
		if err != nil {
			return fmt.Errorf("built-in image %s: %w", b.tag, err)
		}
	}
	return nil
}

// helloLayer is a file system with the program and what a process likes to
// find. It is the same for the same program.
func helloLayer(packed []byte) (v1.Layer, error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	program, err := io.ReadAll(zr)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range []struct {
		name string
		mode int64
		body []byte
	}{
		{"etc/", 0o755, nil},
		{"etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\n")},
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/hello\nnobody:x:65534:65534:nobody:/:/hello\n")},
		{"hello", 0o755, program},
		{"tmp/", 0o1777, nil},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Typeflag: tar.TypeReg, Size: int64(len(f.body))}
		if f.body == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.body); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(buf.Bytes(), types.OCIUncompressedLayer), nil
}

func helloImage(layer v1.Layer, version, content string) (v1.Image, error) {
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config = v1.Config{
		Entrypoint:   []string{"/hello"},
		Env:          []string{"PATH=/", "VERSION=" + version},
		User:         "65534:65534",
		ExposedPorts: map[string]struct{}{fmt.Sprintf("%d/tcp", Port): {}},
		Labels: map[string]string{
			contentLabel:                       content,
			"org.opencontainers.image.title":   "hello",
			"org.opencontainers.image.version": version,
		},
	}
	return mutate.ConfigFile(img, cf)
}
