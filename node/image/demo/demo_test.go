package demo

import (
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/skiff-sh/skiff/node/image"
)

func pack(t *testing.T, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEnsure(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: images are unpacked with their owners and mounted")
	}
	s, err := image.Open(image.Config{Dir: t.TempDir(), Owner: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := ensure(ctx, s, pack(t, "program one")); err != nil {
		t.Fatal(err)
	}
	v1, ok1 := s.Get(HelloV1)
	v2, ok2 := s.Get(HelloV2)
	if !ok1 || !ok2 || v1.ID == v2.ID || v1.Layers[0] != v2.Layers[0] || !v1.Pinned || v2.Config.Env[1] != "VERSION=v2" {
		t.Fatalf("%+v\n%+v", v1, v2)
	}
	root, err := s.Mount(ctx, HelloV1, "k")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount("k"); err != nil {
			t.Error(err)
		}
	})
	if b, err := os.ReadFile(filepath.Join(root, "hello")); err != nil || string(b) != "program one" {
		t.Errorf("%q %v", b, err)
	}
	if err := ensure(ctx, s, pack(t, "program one")); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.Get(HelloV1); !again.PulledAt.Equal(v1.PulledAt) {
		t.Error("made again though it was there")
	}
	if err := ensure(ctx, s, pack(t, "program two")); err != nil {
		t.Fatal(err)
	}
	if next, _ := s.Get(HelloV1); next.ID == v1.ID {
		t.Error("an upgrade did not bring the new program")
	}
}
