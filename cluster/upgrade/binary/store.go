package binary

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// What can be wrong with a binary that is added. Errors of the program itself are
// ErrNoProgram, those of its signature ErrUnsigned and ErrSignature.
var (
	ErrContent = errors.New("the content is not that of the binary")
	ErrNoRoom  = errors.New("no room for the binary")
	ErrMissing = errors.New("the binary is not here")
)

// Dir is the folder of programs and of what is known of a switch, in a data
// directory.
func Dir(dataDir string) string { return filepath.Join(dataDir, "upgrade") }

// DefaultMargin is how many bytes have to stay free: the log is more precious
// than an upgrade.
const DefaultMargin = 256 << 20

// Store keeps programs by their SHA-256, each verified before it has its name:
// size, hash, platform, signature, and that it runs on this host. What has come
// of one that is not complete stays, so that it can be gone on with. Safe for
// concurrent use in one process.
type Store struct {
	dir    string
	keys   Keys
	margin int64

	mu sync.Mutex // one Add, or Prune, at a time
}

// StoreConfig of a Store.
type StoreConfig struct {
	Dir    string // see Dir
	Keys   Keys
	Margin int64 // default DefaultMargin
}

// OpenStore makes the folder if there is none. On a disk that takes nothing more
// the store is empty, and takes nothing.
func OpenStore(c StoreConfig) (*Store, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("folder of programs: %w", err)
	}
	if c.Margin == 0 {
		c.Margin = DefaultMargin
	}
	return &Store{dir: c.Dir, keys: c.Keys, margin: c.Margin}, nil
}

// Keys that binaries have to be signed with; none: with none.
func (s *Store) Keys() Keys { return s.keys }

// Path of a program that is in the store.
func (s *Store) Path(sum string) string { return filepath.Join(s.dir, sum) }

func (s *Store) partial(sum string) string { return s.Path(sum) + ".part" }
func (s *Store) about(sum string) string   { return s.Path(sum) + ".json" }

// Get tells what is known of a program in the store.
func (s *Store) Get(sum string) (order.Binary, bool) {
	var b order.Binary
	if !isSum(sum) {
		return b, false
	}
	text, err := os.ReadFile(s.about(sum))
	if err != nil || json.Unmarshal(text, &b) != nil || b.SHA256 != sum {
		return b, false
	}
	st, err := os.Stat(s.Path(sum))
	return b, err == nil && st.Size() == b.Size
}

// List gives all programs in the store.
func (s *Store) List() ([]order.Binary, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("folder of programs: %w", err)
	}
	var out []order.Binary
	for _, e := range entries {
		if b, ok := s.Get(e.Name()); ok {
			out = append(out, b)
		}
	}
	return out, nil
}

// Open opens a program that is in the store, for others to read.
func (s *Store) Open(sum string) (*os.File, order.Binary, error) {
	b, ok := s.Get(sum)
	if !ok {
		return nil, b, fmt.Errorf("%w: %s", ErrMissing, sum)
	}
	f, err := os.Open(s.Path(sum))
	return f, b, err
}

// Source gives a binary's content from an offset on.
type Source func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Add reads a binary to its end, verifies it and keeps it. One that is here
// already is read all the same: who sends it may not listen before.
func (s *Store) Add(ctx context.Context, b order.Binary, r io.Reader) error {
	err := s.add(ctx, b, whole(r), false)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(r, b.Size))
	}
	return err
}

// AddFrom is Add from a source that can begin where an earlier call was
// interrupted.
func (s *Store) AddFrom(ctx context.Context, b order.Binary, from Source) error {
	return s.add(ctx, b, from, true)
}

func whole(r io.Reader) Source {
	return func(context.Context, int64) (io.ReadCloser, error) { return io.NopCloser(r), nil }
}

func (s *Store) add(ctx context.Context, b order.Binary, from Source, goOn bool) error {
	if err := checkAnnounced(b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.Get(b.SHA256); ok {
		return s.again(have, b)
	}
	if err := s.receive(ctx, b, from, goOn); err != nil {
		return err
	}
	return s.accept(ctx, b)
}

// again checks the signature of a binary that is here since before keys were set,
// or came without.
func (s *Store) again(have, b order.Binary) error {
	if len(s.keys) == 0 {
		return nil
	}
	f, err := os.Open(s.Path(b.SHA256))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.keys.verify(f, b.Signature); err != nil || slices.Equal(have.Signature, b.Signature) {
		return err
	}
	return s.describe(b)
}

func checkAnnounced(b order.Binary) error {
	switch {
	case !isSum(b.SHA256):
		return fmt.Errorf("binary: sha256 %q is not 64 digits of hex", b.SHA256)
	case b.Size <= 0:
		return fmt.Errorf("binary: size %d", b.Size)
	case b.Platform != Platform:
		return fmt.Errorf("%w: it is for %s, this host is %s", ErrNoProgram, b.Platform, Platform)
	}
	return nil
}

func isSum(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

// receive fills the partial file, from where it ends or from the beginning.
func (s *Store) receive(ctx context.Context, b order.Binary, from Source, goOn bool) error {
	f, err := os.OpenFile(s.partial(b.SHA256), os.O_WRONLY|os.O_CREATE, 0o700)
	if err != nil {
		return fmt.Errorf("keep the binary: %w", err)
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err == nil && (!goOn || at > b.Size) {
		at = 0
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.Seek(at, io.SeekStart)
	}
	if err == nil {
		err = f.Chmod(0o700)
	}
	if err != nil {
		return fmt.Errorf("keep the binary: %w", err)
	}
	if err := room(s.dir, b.Size-at+s.margin); err != nil {
		return err
	}
	if at < b.Size {
		n, err := s.copy(ctx, f, b, from, at)
		if err != nil {
			return err
		}
		if at += n; at < b.Size {
			return fmt.Errorf("%w: the binary ends after %d bytes of %d", io.ErrUnexpectedEOF, at, b.Size)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("keep the binary: %w", err)
	}
	return nil
}

func (s *Store) copy(ctx context.Context, to io.Writer, b order.Binary, from Source, at int64) (int64, error) {
	body, err := from(ctx, at)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	n, err := io.Copy(to, io.LimitReader(body, b.Size-at+1))
	switch {
	case errors.Is(err, unix.ENOSPC):
		return n, s.drop(b, fmt.Errorf("%w: %w", ErrNoRoom, err))
	case n > b.Size-at:
		return n, s.drop(b, fmt.Errorf("%w: it is longer than %d bytes", ErrContent, b.Size))
	case err != nil:
		return n, fmt.Errorf("read the binary: %w", err)
	}
	return n, nil
}

// drop removes what cannot become the binary.
func (s *Store) drop(b order.Binary, why error) error {
	if err := os.Remove(s.partial(b.SHA256)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(why, err)
	}
	return why
}

// accept verifies the partial file and gives it its name. The signature is
// checked before the program runs.
func (s *Store) accept(ctx context.Context, b order.Binary) error {
	if err := s.inspect(b); err != nil {
		return s.drop(b, err)
	}
	is, err := ask(ctx, s.partial(b.SHA256))
	if err == nil {
		err = differs(is, b)
	}
	if ctx.Err() != nil {
		return err // it may be good
	}
	if err != nil {
		return s.drop(b, err)
	}
	if err := s.describe(b); err != nil {
		return err
	}
	if err := os.Rename(s.partial(b.SHA256), s.Path(b.SHA256)); err != nil {
		return fmt.Errorf("keep the binary: %w", err)
	}
	return durable.SyncDir(s.dir)
}

// describe writes what is known of a binary. It is worth nothing without the
// program beside it.
func (s *Store) describe(b order.Binary) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return durable.Replace(s.about(b.SHA256), text, 0o600)
}

func (s *Store) inspect(b order.Binary) error {
	f, err := os.Open(s.partial(b.SHA256))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	signed := minisign.NewReader(io.TeeReader(f, sum))
	if _, err := io.Copy(io.Discard, signed); err != nil {
		return fmt.Errorf("read the binary: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != b.SHA256 {
		return fmt.Errorf("%w: its SHA-256 is %s instead of %s", ErrContent, got, b.SHA256)
	}
	if err := s.keys.check(signed, b.Signature); err != nil {
		return err
	}
	platform, err := checkELF(f, b.Size)
	if err != nil {
		return err
	}
	if platform != Platform {
		return fmt.Errorf("%w: it is for %s, this host is %s", ErrNoProgram, platform, Platform)
	}
	return nil
}

// keepRunning puts a program that runs on this host already into the store: a
// signature is not asked for.
func (s *Store) keepRunning(b order.Binary, r io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.Get(b.SHA256); ok {
		return nil
	}
	if err := s.receive(context.Background(), b, whole(r), false); err != nil {
		return err
	}
	own := &Store{dir: s.dir}
	if err := own.inspect(b); err != nil {
		return s.drop(b, err)
	}
	if err := s.describe(b); err != nil {
		return err
	}
	if err := os.Rename(s.partial(b.SHA256), s.Path(b.SHA256)); err != nil {
		return fmt.Errorf("keep the binary: %w", err)
	}
	return durable.SyncDir(s.dir)
}

// Prune removes every program but those named, and what is left of others.
func (s *Store) Prune(keep ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("folder of programs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		sum, _, _ := strings.Cut(e.Name(), ".")
		if isSum(sum) && !slices.Contains(keep, sum) {
			errs = append(errs, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// room is ErrNoRoom if fewer than so many bytes are free where path is.
func room(path string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", path, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes {
		return fmt.Errorf("%w: %d MiB are free in %s, %d are needed", ErrNoRoom, free>>20, path, (bytes+1<<20-1)>>20)
	}
	return nil
}
