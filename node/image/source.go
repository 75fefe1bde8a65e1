package image

import (
	"context"
	"encoding/json"
	"fmt"
	goruntime "runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source is an image to be had from somewhere.
type source struct {
	id      string // digest of config
	config  []byte
	layers  []layerSource
	tags    []string // normalized
	digests []string // normalized
}

// platform is what images must be made for.
func platform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: goruntime.GOARCH}
}

// add brings an image's layers into the store and registers it.
func (s *Store) add(ctx context.Context, src *source, pinned bool, t *tracker) (*Image, error) {
	if err := checkDigest(src.id); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(src.config, &cfg); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	want := platform()
	if cfg.OS != "" && cfg.OS != want.OS || cfg.Architecture != "" && cfg.Architecture != want.Architecture {
		return nil, fmt.Errorf("the image is made for %s/%s, this machine is %s/%s", cfg.OS, cfg.Architecture, want.OS, want.Architecture)
	}
	if len(cfg.RootFS.DiffIDs) != len(src.layers) {
		return nil, fmt.Errorf("image configuration names %d layers, there are %d", len(cfg.RootFS.DiffIDs), len(src.layers))
	}
	img := &Image{
		ID: src.id, RepoTags: src.tags, RepoDigests: src.digests, OS: cfg.OS, Arch: cfg.Architecture,
		Config: cfg.Config, Pinned: pinned, PulledAt: time.Now(),
	}
	if cfg.Created != nil {
		img.Created = *cfg.Created
	}
	var total int64
	for i, d := range cfg.RootFS.DiffIDs {
		src.layers[i].diffID = d.String()
		img.Layers = append(img.Layers, d.String())
		total += src.layers[i].size
	}
	t.report("", "Downloading", 0, total)
	var err error
	if img.Size, err = s.addLayers(ctx, src.layers, t); err != nil {
		return nil, err
	}
	if img.Dirs, err = s.impliedDirs(img.Layers); err != nil {
		return nil, err
	}
	return s.register(img)
}
