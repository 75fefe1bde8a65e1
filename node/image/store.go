package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

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
)

// Image is an image in the store. What the store returns is a copy.
type Image struct {
	ID          string              `json:"id"`                    // digest of its configuration: "sha256:…"
	RepoTags    []string            `json:"repoTags,omitempty"`    // "docker.io/library/nginx:1.27"
	RepoDigests []string            `json:"repoDigests,omitempty"` // "docker.io/library/nginx@sha256:…"
	Size        int64               `json:"size"`                  // bytes of its unpacked layers
	Created     time.Time           `json:"created,omitzero"`
	OS          string              `json:"os,omitempty"`
	Arch        string              `json:"arch,omitempty"`
	Config      ocispec.ImageConfig `json:"config"`
	Layers      []string            `json:"layers,omitempty"` // diff IDs, lowest first
	Pinned      bool                `json:"pinned,omitempty"` // never removed by Prune
	PulledAt    time.Time           `json:"pulledAt,omitzero"`

	// Dirs are directories that must get their attributes from a lower layer;
	// see impliedDirs.
	Dirs []dirAttr `json:"dirs,omitempty"`
}

// index is what the store knows, in one file that is replaced as a whole.
type index struct {
	Images   map[string]*Image `json:"images"`             // by ID
	Imported map[string]string `json:"imported,omitempty"` // archives of ImportDir: path -> size and time
}

// Store is a directory of images:
//
//	index.json            what there is
//	lock, pulls           flock files: see update, shared and pulling
//	layers/<diff ID>/     fs (the layer unpacked) and layer.json
//	layers/<diff ID>.tmp  being unpacked
//	mounts/<key>/         image, layers, upper, work and rootfs of a container
//	used/<image ID>       its time is when the image was last used
//	tmp/                  archives being read
//
// Safe for concurrent use, also by several processes.
type Store struct {
	cfg       Config
	log       *slog.Logger
	downloads chan struct{} // a token for each layer under way

	mu     sync.Mutex
	cached *index
	stamp  fileStamp
}

type fileStamp struct {
	ino   uint64
	mtime int64
	size  int64
}

const lockWait = 20 * time.Millisecond

// Open opens or creates the store and removes what crashes left half done. It sets
// the process's umask to 022: what is unpacked is for the users of containers.
func Open(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("image store: directory %q is no absolute path", cfg.Dir)
	}
	for host, r := range cfg.Registries {
		if err := r.check(host); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxDownloads <= 0 {
		cfg.MaxDownloads = 4
	}
	unix.Umask(0o022)
	s := &Store{cfg: cfg, log: cfg.Logger, downloads: make(chan struct{}, cfg.MaxDownloads)}
	for _, d := range []string{"layers", "mounts", "tmp", "used"} {
		if err := os.MkdirAll(s.path(d), 0o711); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if cfg.Owner {
		if err := s.mend(); err != nil {
			return nil, err
		}
	}
	if _, err := s.read(); err != nil {
		return nil, err
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("image store: clean up: %w", err)
	}
	if cfg.Owner {
		if err := s.sweepMounts(); err != nil {
			return nil, fmt.Errorf("image store: clean up mounts: %w", err)
		}
	}
	return s, nil
}

// Close is there for symmetry; the store holds nothing open, and mounts stay.
func (s *Store) Close() error { return nil }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, elem...)...)
}

// flock locks one of the store's lock files. Each call has a descriptor of its
// own, so goroutines exclude each other as processes do.
func (s *Store) flock(name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.path(name), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// shared keeps images from being removed.
func (s *Store) shared() (unlock func(), err error) { return s.flock("lock", unix.LOCK_SH) }

// pulling keeps layers that no image refers to yet from being removed.
func (s *Store) pulling() (unlock func(), err error) { return s.flock("pulls", unix.LOCK_SH) }

// read returns the index as it is on disk now. It must not be changed.
func (s *Store) read() (*index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st unix.Stat_t
	err := unix.Stat(s.path("index.json"), &st)
	if errors.Is(err, unix.ENOENT) {
		return &index{Images: map[string]*Image{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image store: read index: %w", err)
	}
	stamp := fileStamp{st.Ino, st.Mtim.Nano(), st.Size}
	if s.cached != nil && stamp == s.stamp {
		return s.cached, nil
	}
	b, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	if err != nil {
		return nil, fmt.Errorf("image store: read index: %w", err)
	}
	idx, err := decodeIndex(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; skiff server or agent puts it aside when it starts, and images are then pulled again", errIndex, s.path("index.json"), err)
	}
	s.cached, s.stamp = idx, stamp
	return idx, nil
}

// update changes the index under the store's lock. fn gets a copy.
func (s *Store) update(fn func(*index) error) error { return s.updateOr(fn, nil) }

// updateOr has full make room when the disk has none for the new index, and tries
// again. full gets the new index.
func (s *Store) updateOr(fn func(*index) error, full func(*index) error) error {
	unlock, err := s.flock("lock", unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer unlock()
	old, err := s.read()
	if err != nil {
		return err
	}
	b, err := json.Marshal(old)
	if err != nil {
		return err
	}
	idx := &index{}
	if err := json.Unmarshal(b, idx); err != nil {
		return err
	}
	if idx.Images == nil {
		idx.Images = map[string]*Image{}
	}
	if err := fn(idx); err != nil {
		return err
	}
	if b, err = encodeIndex(idx); err != nil {
		return err
	}
	err = writeFileSync(s.path("index.json"), b)
	if full != nil && errors.Is(err, unix.ENOSPC) {
		if ferr := full(idx); ferr == nil {
			err = writeFileSync(s.path("index.json"), b)
		} else {
			err = errors.Join(err, ferr)
		}
	}
	if err != nil {
		return fmt.Errorf("image store: write index: %w", err)
	}
	return nil
}

// writeFileSync replaces a file durably.
func writeFileSync(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// List returns all images, ordered by first tag.
func (s *Store) List() ([]*Image, error) {
	idx, err := s.read()
	if err != nil {
		return nil, err
	}
	out := make([]*Image, 0, len(idx.Images))
	for _, img := range idx.Images {
		out = append(out, img.clone())
	}
	key := func(i *Image) string { return strings.Join(append(i.RepoTags, i.RepoDigests...), " ") + " " + i.ID }
	sort.Slice(out, func(i, j int) bool { return key(out[i]) < key(out[j]) })
	return out, nil
}

// Get finds an image by reference (tag or digest, short forms too) or by ID.
func (s *Store) Get(ref string) (*Image, bool) {
	idx, err := s.read()
	if err != nil {
		s.log.Error("read the image index", "err", err)
		return nil, false
	}
	img := idx.find(ref)
	if img == nil {
		return nil, false
	}
	return img.clone(), true
}

// shortID is how many hexadecimal digits identify an image for people.
const shortID = 12

func (idx *index) find(ref string) *Image {
	if img := idx.Images[ref]; img != nil {
		return img
	}
	if full, err := Normalize(ref); err == nil {
		for _, img := range idx.Images {
			if contains(img.RepoTags, full) || contains(img.RepoDigests, full) {
				return img
			}
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) < shortID || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil
	}
	var found *Image
	for id, img := range idx.Images {
		if strings.HasPrefix(id, "sha256:"+hex) {
			if found != nil {
				return nil // ambiguous
			}
			found = img
		}
	}
	return found
}

func (i *Image) clone() *Image {
	b, err := json.Marshal(i)
	if err != nil {
		panic(err) // it came from JSON
	}
	out := &Image{}
	if err := json.Unmarshal(b, out); err != nil {
		panic(err)
	}
	return out
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func without(list []string, s string) []string {
	var out []string
	for _, v := range list {
		if v != s {
			out = append(out, v)
		}
	}
	return out
}

// register adds an image whose layers are in the store; its tags move to it.
func (s *Store) register(img *Image) (*Image, error) {
	var out *Image
	err := s.update(func(idx *index) error {
		if have := idx.Images[img.ID]; have != nil {
			img.Pinned = img.Pinned || have.Pinned
			img.RepoTags = union(have.RepoTags, img.RepoTags)
			img.RepoDigests = union(have.RepoDigests, img.RepoDigests)
		}
		for _, other := range idx.Images {
			for _, tag := range img.RepoTags {
				other.RepoTags = without(other.RepoTags, tag)
			}
		}
		idx.Images[img.ID] = img
		out = img.clone()
		return nil
	})
	return out, err
}

func union(a, b []string) []string {
	out := append([]string(nil), a...)
	for _, v := range b {
		if !contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// Pin protects an image from Prune, or no longer.
func (s *Store) Pin(ref string, pinned bool) error {
	return s.update(func(idx *index) error {
		img := idx.find(ref)
		if img == nil {
			return fmt.Errorf("%w: %s", ErrNotFound, ref)
		}
		img.Pinned = pinned
		return nil
	})
}

// Remove removes a tag or digest, and the image with its last one; an ID
// removes the image with all of them, pinned or not. An image that a container
// is mounted from is refused (ErrInUse).
func (s *Store) Remove(ctx context.Context, ref string) error {
	var removed string
	err := s.update(func(idx *index) error {
		img := idx.find(ref)
		if img == nil {
			return fmt.Errorf("%w: %s", ErrNotFound, ref)
		}
		if full, err := Normalize(ref); err == nil {
			tags, digests := without(img.RepoTags, full), without(img.RepoDigests, full)
			named := len(tags) < len(img.RepoTags) || len(digests) < len(img.RepoDigests)
			// Digests name the image only as long as it has no tag.
			if named && len(tags)+len(digests) > 0 && (len(tags) > 0 || len(img.RepoTags) == 0) {
				img.RepoTags, img.RepoDigests = tags, digests
				return nil
			}
		}
		if users := s.users(img.ID); len(users) > 0 {
			return fmt.Errorf("%w: %s is mounted for %s", ErrInUse, ref, strings.Join(users, ", "))
		}
		delete(idx.Images, img.ID)
		removed = img.ID
		return nil
	})
	if err != nil {
		return err
	}
	if removed != "" {
		s.forgetUse(removed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.sweep()
}

// Prune removes images that are neither pinned nor mounted nor wanted by keep
// (which may be nil), and returns them.
func (s *Store) Prune(ctx context.Context, keep func(*Image) bool) ([]*Image, error) {
	var gone []*Image
	err := s.updateOr(func(idx *index) error {
		for id, img := range idx.Images {
			if img.Pinned || keep != nil && keep(img.clone()) || len(s.users(id)) > 0 {
				continue
			}
			gone = append(gone, img)
			delete(idx.Images, id)
		}
		if len(gone) == 0 {
			return errNothing
		}
		return ctx.Err()
	}, s.sweepLocked)
	if errors.Is(err, errNothing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, img := range gone {
		s.forgetUse(img.ID)
	}
	return gone, s.sweep()
}

var errNothing = errors.New("nothing to do")

// sweep removes layers that no image has and what interrupted pulls left. It
// does nothing while somebody pulls or imports: their layers have no image yet.
func (s *Store) sweep() error {
	unlock, err := s.flock("pulls", unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	lock, err := s.shared()
	if err != nil {
		return err
	}
	defer lock()
	idx, err := s.read()
	if err != nil {
		return err
	}
	return s.sweepLayers(idx)
}

// sweepLocked is sweep for an index that can't be written before there is room; the
// store's lock is held. A crash before it is written leaves images that lack layers,
// which mend drops.
func (s *Store) sweepLocked(idx *index) error {
	unlock, err := s.flock("pulls", unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return err
	}
	defer unlock()
	return s.sweepLayers(idx)
}

func (s *Store) sweepLayers(idx *index) error {
	used, known, err := s.mountedLayers(idx)
	if err != nil {
		return err
	}
	used[emptyLayer] = true
	for _, img := range idx.Images {
		for _, l := range img.Layers {
			used[layerName(l)] = true
		}
	}
	ents, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range ents {
		if !used[e.Name()] && (known || strings.HasSuffix(e.Name(), ".tmp")) {
			errs = append(errs, os.RemoveAll(s.path("layers", e.Name())))
		}
	}
	tmp, err := os.ReadDir(s.path("tmp"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range tmp {
		errs = append(errs, os.RemoveAll(s.path("tmp", e.Name())))
	}
	return errors.Join(errs...)
}
