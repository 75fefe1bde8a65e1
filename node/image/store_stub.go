package image

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var errSoon = errors.New("image: not built yet")

// Registry says how one registry host is reached.
type Registry struct {
	// Mirrors are tried in order before the registry itself:
	// "https://mirror.example", "http://10.0.0.1:5000/prefix", "host:port".
	Mirrors []string `json:"mirrors,omitempty"`
	// PlainHTTP uses http:// in place of https:// for the registry itself.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// InsecureSkipVerify accepts any server certificate (also of https mirrors).
	InsecureSkipVerify bool `json:"insecureSkipVerify,omitempty"`
	// CAFile holds further certificates to trust (also for https mirrors).
	CAFile string `json:"caFile,omitempty"`
}

// Config configures a Store.
type Config struct {
	Dir string // <data-dir>/node/images
	// Registries by host ("docker.io", "registry.example:5000", "*" for all others).
	Registries map[string]Registry
	Logger     *slog.Logger
	// Owner is set by the node agent only, not by command-line tools beside
	// it: the owner cleans up mounts that a crash or reboot left behind.
	Owner bool
	// MaxDownloads bounds the layers downloaded at one time; 4 when 0.
	MaxDownloads int
}

// Sentinel errors; compare with errors.Is.
var (
	ErrInvalidName  = errors.New("invalid image name")             // kubelet: InvalidImageName
	ErrNotFound     = errors.New("image not found")                // in the registry or in the store
	ErrUnauthorized = errors.New("access to the image was denied") // no or wrong credentials
	ErrNotArchive   = errors.New("not an image archive")
	ErrInUse        = errors.New("image is in use by a container")
	ErrPinned       = errors.New("image is pinned")
)

// Image is an image in the store. It is a copy: changing it changes nothing.
type Image struct {
	ID          string   // digest of its configuration: "sha256:…"
	RepoTags    []string // "docker.io/library/nginx:1.27"
	RepoDigests []string // "docker.io/library/nginx@sha256:…"
	Size        int64    // bytes of its unpacked layers on disk
	Created     time.Time
	OS          string
	Arch        string
	Config      ocispec.ImageConfig
	Layers      []string // diff IDs, lowest first
	Pinned      bool     // never removed by Prune
	PulledAt    time.Time
}

// Progress is how far a pull or import has come.
type Progress struct {
	Ref      string // the image or archive
	Layer    string // the layer this report is about, or "" for the whole
	Status   string // "Resolving", "Downloading", "Unpacking", "Exists", "Done"
	Complete int64  // bytes done of the whole
	Total    int64  // bytes of the whole; grows while images are being resolved
}

// ProgressFunc receives reports; it is called from several goroutines, one at a time. May be nil.
type ProgressFunc func(Progress)

// Store is a directory of images. Safe for concurrent use, also by several processes.
type Store struct{}

// Open opens or creates the store and removes what crashes left half done.
func Open(Config) (*Store, error) { return nil, errSoon }

// Close releases the store's files; mounts stay.
func (s *Store) Close() error { return nil }

// Normalize completes a reference as Docker users write it ("nginx" ->
// "docker.io/library/nginx:latest"). Its errors are ErrInvalidName.
func Normalize(ref string) (string, error) { return "", errSoon }

// Keychain makes credentials from the contents of imagePullSecrets
// (.dockerconfigjson or .dockercfg); none means anonymous.
func Keychain(dockerConfigs ...[]byte) (authn.Keychain, error) { return nil, errSoon }

// Pull fetches ref from its registry or mirrors. Layers that exist are not
// fetched again. auth may be nil for anonymous.
func (s *Store) Pull(ctx context.Context, ref string, auth authn.Keychain, progress ProgressFunc) (*Image, error) {
	return nil, errSoon
}

// Import loads every image of an archive (docker save or OCI layout, plain or
// compressed tar) or OCI layout directory, and pins them.
func (s *Store) Import(ctx context.Context, path string, progress ProgressFunc) ([]*Image, error) {
	return nil, errSoon
}

// ImportReader is Import from a stream; name is used in messages.
func (s *Store) ImportReader(ctx context.Context, name string, r io.Reader, progress ProgressFunc) ([]*Image, error) {
	return nil, errSoon
}

// ImportDir imports the archives in a folder, skipping those imported before
// and unchanged since. It goes on after errors and returns them joined.
func (s *Store) ImportDir(ctx context.Context, dir string, progress ProgressFunc) ([]*Image, error) {
	return nil, errSoon
}

// List returns all images, ordered by first tag.
func (s *Store) List() ([]*Image, error) { return nil, errSoon }

// Get finds an image by reference (tag or digest, short forms too) or ID.
func (s *Store) Get(ref string) (*Image, bool) { return nil, false }

// Remove removes a tag, and the image with its last one; an ID removes the
// image with all tags. Images of mounted containers are refused (ErrInUse).
func (s *Store) Remove(ctx context.Context, ref string) error { return errSoon }

// Pin protects an image from Prune, or no longer.
func (s *Store) Pin(ref string, pinned bool) error { return errSoon }

// Prune removes images that are neither pinned nor mounted nor wanted by keep
// (which may be nil), and returns them.
func (s *Store) Prune(ctx context.Context, keep func(*Image) bool) ([]*Image, error) {
	return nil, errSoon
}

// Mount makes a writable root file system of an image for a container key
// (such as its ID) and returns its path. Mounting a key again returns the same.
func (s *Store) Mount(ctx context.Context, imageID, key string) (rootfs string, err error) {
	return "", errSoon
}

// Unmount removes a key's root file system with all that was written to it.
// No error when there is none.
func (s *Store) Unmount(key string) error { return errSoon }

// Mounts returns the keys that are mounted.
func (s *Store) Mounts() ([]string, error) { return nil, errSoon }

// MountUsage returns bytes and inodes written to a key's root file system.
func (s *Store) MountUsage(key string) (bytes, inodes int64, err error) { return 0, 0, errSoon }
