package main

import (
	"crypto/tls"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestRegistryFolder follows the files as agnhost's registry does, from the tag
// to the layers.
func TestRegistryFolder(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "pause"), []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	img, err := imageOf(root, v1.Config{Entrypoint: []string{"/pause"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := registryFolder(dir, "testing", img); err != nil {
		t.Fatal(err)
	}
	at := func(kind, digest string) []byte {
		t.Helper()
		sum, ok := strings.CutPrefix(strings.TrimSpace(digest), "sha256:")
		if !ok {
			t.Fatalf("digest %q", digest)
		}
		b, err := os.ReadFile(filepath.Join(dir, kind, "sha256", sum[:2], sum, "data"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tag, err := os.ReadFile(filepath.Join(dir, "manifests", "testing"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(at("manifests", string(tag)), &index); err != nil || len(index.Manifests) != 1 {
		t.Fatal(err, index)
	}
	if p := index.Manifests[0].Platform; p == nil || p.OS != "linux" || p.Architecture != "amd64" {
		t.Errorf("platform %v", p)
	}
	var m v1.Manifest
	if err := json.Unmarshal(at("manifests", index.Manifests[0].Digest.String()), &m); err != nil || len(m.Layers) != 1 {
		t.Fatal(err, m)
	}
	if config := at("blobs", m.Config.Digest.String()); !strings.Contains(string(config), "/pause") {
		t.Errorf("config %s", config)
	}
	if layer := at("blobs", m.Layers[0].Digest.String()); int64(len(layer)) != m.Layers[0].Size {
		t.Errorf("a layer of %d bytes, want %d", len(layer), m.Layers[0].Size)
	}
}

func TestSelfSigned(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "c"), filepath.Join(t.TempDir(), "k")
	if err := selfSigned(cert, key); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
}

// TestSpecsAreKnownOnce: an image is found by the last part of its repository.
func TestSpecsAreKnownOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range e2eSpecs("/agnhost") {
		if s.name == "" || seen[s.name] {
			t.Errorf("image %q is there twice, or has no name", s.name)
		}
		seen[s.name] = true
	}
	for _, want := range []string{"agnhost", "busybox", "nginx", "pause", "nonewprivs", "nonroot"} {
		if !seen[want] {
			t.Errorf("there is no image %s", want)
		}
	}
	if got := archiveName("registry.k8s.io/e2e-test-images/agnhost:2.63.0"); got != "registry.k8s.io_e2e-test-images_agnhost_2.63.0.tar" {
		t.Error(got)
	}
}
