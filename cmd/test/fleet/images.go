package fleet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/pod"
)

// appImage is the only image there is; every node has it.
const appImage = "fleet.invalid/app:1"

var app = &image.Image{ID: "sha256:fleet", RepoTags: []string{appImage}, RepoDigests: []string{"fleet.invalid/app@sha256:fleet"},
	Config: ocispec.ImageConfig{Entrypoint: []string{"/app"}}}

// images is a store that unpacks nothing.
type images struct {
	mu     sync.Mutex
	mounts map[string]bool
}

func newImages() *images { return &images{mounts: map[string]bool{}} }

func (i *images) Get(ref string) (*image.Image, bool) { return app, ref == appImage || ref == app.ID }
func (i *images) List() ([]*image.Image, error)       { return []*image.Image{app}, nil }
func (i *images) Pull(_ context.Context, ref string, _ authn.Keychain, _ image.ProgressFunc) (*image.Image, error) {
	if ref == appImage {
		return app, nil
	}
	return nil, fmt.Errorf("%s: %w", ref, image.ErrNotFound)
}

func (i *images) Mount(_ context.Context, _, key string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mounts[key] = true
	return "/fleet/" + key, nil
}

func (i *images) Mounted(key string) (string, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return "/fleet/" + key, i.mounts[key]
}

func (i *images) Unmount(key string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.mounts, key)
	return nil
}

func (i *images) Mounts() ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.mounts)), nil
}

func (i *images) MountUsage(string) (bytes, inodes int64, err error) { return 0, 0, nil }

// network hands out addresses that lead nowhere: 10.42.NODE.0/24.
type network struct {
	node byte

	mu    sync.Mutex
	addrs map[string]netip.Addr
	last  byte
}

func newNetwork(node byte) *network { return &network{node: node, addrs: map[string]netip.Addr{}} }

func (n *network) Attach(_ context.Context, uid, _ string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.addrs[uid]; ok {
		return []netip.Addr{a}, nil
	}
	used := slices.Collect(maps.Values(n.addrs))
	for range 254 {
		n.last = n.last%254 + 1
		if a := netip.AddrFrom4([4]byte{10, 42, n.node, n.last}); !slices.Contains(used, a) {
			n.addrs[uid] = a
			return []netip.Addr{a}, nil
		}
	}
	return nil, fmt.Errorf("node %d has no address left", n.node)
}

func (n *network) Detach(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.addrs, uid)
	return nil
}

func (n *network) Adopt(_ context.Context, alive []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.addrs, func(uid string, _ netip.Addr) bool { return !slices.Contains(alive, uid) })
	return nil
}

func (n *network) HostPorts(context.Context, string, []pod.HostPort) error { return nil }
func (n *network) DNS() (netip.Addr, string) {
	return netip.MustParseAddr("10.43.0.10"), "cluster.local"
}
