package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// emptyLayer is the lower directory of images without layers.
const emptyLayer = "empty"

// layerSource is a layer to be had from somewhere.
type layerSource struct {
	diffID string // digest of the uncompressed tar: "sha256:…"
	size   int64  // bytes that open gives
	open   func(context.Context) (io.ReadCloser, error)
}

// layerInfo is kept beside an unpacked layer.
type layerInfo struct {
	Size int64 `json:"size"` // bytes of its files
	// Implied are directories that the layer's tar uses without containing
	// them; what they look like is a lower layer's to say.
	Implied []string `json:"implied,omitempty"`
}

func layerName(diffID string) string { return strings.TrimPrefix(diffID, "sha256:") }

// checkDigest refuses what must not become a path.
func checkDigest(d string) error {
	h, ok := strings.CutPrefix(d, "sha256:")
	if _, err := hex.DecodeString(h); !ok || err != nil || len(h) != 2*sha256.Size || h != strings.ToLower(h) {
		return fmt.Errorf("%q is no sha256 digest", d)
	}
	return nil
}

// addLayers brings an image's layers into the store, several at a time, and
// returns the sum of their sizes.
func (s *Store) addLayers(ctx context.Context, layers []layerSource, t *tracker) (int64, error) {
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		if err := checkDigest(l.diffID); err != nil {
			return 0, fmt.Errorf("layer: %w", err)
		}
		g.Go(func() error {
			select {
			case s.downloads <- struct{}{}:
				defer func() { <-s.downloads }()
			case <-gctx.Done():
				return gctx.Err()
			}
			if err := s.addLayer(gctx, l, t); err != nil {
				return fmt.Errorf("layer %s: %w", l.diffID, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	var sum int64
	for _, l := range layers {
		info, err := s.layerInfo(l.diffID)
		if err != nil {
			return 0, err
		}
		sum += info.Size
	}
	return sum, nil
}

func (s *Store) layerInfo(diffID string) (*layerInfo, error) {
	b, err := os.ReadFile(s.path("layers", layerName(diffID), "layer.json"))
	if err != nil {
		return nil, fmt.Errorf("layer %s is not in the store: %w", diffID, err)
	}
	info := &layerInfo{}
	if err := json.Unmarshal(b, info); err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return info, nil
}

func (s *Store) hasLayer(diffID string) bool {
	_, err := os.Stat(s.path("layers", layerName(diffID)))
	return err == nil
}

// maxAttempts is how often a layer's download is tried.
const maxAttempts = 3

// addLayer brings one layer into the store. A layer appears under its final
// name only when it is whole and on disk.
func (s *Store) addLayer(ctx context.Context, l layerSource, t *tracker) error {
	if s.hasLayer(l.diffID) {
		t.report(l.diffID, "Exists", l.size, 0)
		return nil
	}
	unlock, err := s.lockLayer(ctx, l.diffID)
	if err != nil {
		return err
	}
	defer unlock()
	if s.hasLayer(l.diffID) { // somebody else was faster
		t.report(l.diffID, "Exists", l.size, 0)
		return nil
	}
	for attempt := 1; ; attempt++ {
		err := s.unpackLayer(ctx, l, t)
		if err == nil || ctx.Err() != nil || attempt == maxAttempts || !temporary(err) {
			return err
		}
		s.log.Warn("layer download broke off and is tried again", "layer", l.diffID, "err", err)
		select {
		case <-time.After(time.Duration(attempt) * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// temporary says whether reading the source failed in a way that may pass.
func temporary(err error) bool {
	var re *readError
	return errors.As(err, &re)
}

// readError marks failures of the source, as opposed to those of the disk.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && err != io.EOF {
		s.err = &readError{err}
		err = s.err
	}
	return n, err
}

// lockLayer excludes everybody else, in any process, from unpacking a layer:
// with a lock on one byte of a file, at an offset made from the digest.
func (s *Store) lockLayer(ctx context.Context, diffID string) (func(), error) {
	h, err := hex.DecodeString(layerName(diffID)[:16])
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path("layers.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(binary.BigEndian.Uint64(h) >> 2), Len: 1}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EAGAIN && err != unix.EACCES && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock layer: %w", err)
		}
		select {
		case <-time.After(lockWait):
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
}

func (s *Store) unpackLayer(ctx context.Context, l layerSource, t *tracker) (err error) {
	final := s.path("layers", layerName(l.diffID))
	tmp := final + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	root := path.Join(tmp, "fs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	rc, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	tr := &trackedReader{r: rc, t: t, layer: l.diffID, status: "Downloading", size: l.size}
	defer func() { tr.finish(err == nil) }()
	src := &sourceReader{r: tr}
	info, err := apply(ctx, root, src, l.diffID)
	if src.err != nil {
		err = src.err
	}
	if err != nil {
		return err
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path.Join(tmp, "layer.json"), b, 0o644); err != nil {
		return err
	}
	if err := syncFS(tmp); err != nil {
		return fmt.Errorf("write to disk: %w", err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(s.path("layers"))
}

// syncFS writes everything below a directory's file system to disk.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// apply unpacks a layer's tar, compressed or not, and checks its digest.
func apply(ctx context.Context, root string, r io.Reader, diffID string) (*layerInfo, error) {
	plain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	sum := sha256.New()
	tee := io.TeeReader(plain, sum)
	dirs := newDirWatch()
	n, err := archive.Apply(ctx, root, tee,
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout),
		archive.WithFilter(func(h *tar.Header) (bool, error) { dirs.see(h); return true, nil }))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	// The tar reader stops at the end marker; the digest covers what follows.
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return nil, fmt.Errorf("its content has digest %s: it is damaged or was changed", got)
	}
	return &layerInfo{Size: n, Implied: dirs.implied()}, nil
}

// compression names how a stream that begins like this is compressed: "" (not
// at all), "gzip" or "zstd". Others are refused by name.
func compression(magic []byte) (string, error) {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return "gzip", nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd", nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return "", errors.New("compressed with bzip2, which is not supported: use gzip or zstd")
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z'}):
		return "", errors.New("compressed with xz, which is not supported: use gzip or zstd")
	}
	return "", nil
}

const magicLen = 6

// decompress looks at the first bytes of a stream to find out what it is.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(magicLen)
	if err != nil && err != io.EOF {
		return nil, err
	}
	kind, err := compression(magic)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "gzip":
		return gzip.NewReader(br)
	case "zstd":
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}
