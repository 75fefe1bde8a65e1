package runtime

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The directory always holds a README, so that it can be embedded before the
// shim is built.
//
//go:embed embedded
var embedded embed.FS

const embeddedShim = "embedded/skiff-shim.gz"

// ErrNoShim means that this binary was built without the shim inside.
var ErrNoShim = errors.New("this binary was built without skiff-shim, so it cannot run pods: build it with `make build`")

// HasShim says whether the shim is embedded.
func HasShim() bool {
	_, err := fs.Stat(embedded, embeddedShim)
	return err == nil
}

// installShim writes the embedded shim to a path that names its content, so
// that shims of several versions can run side by side, and returns the path.
func installShim(dir string) (string, error) {
	packed, err := embedded.ReadFile(embeddedShim)
	if err != nil {
		return "", ErrNoShim
	}
	sum := sha256.Sum256(packed)
	path := filepath.Join(dir, "shim-"+hex.EncodeToString(sum[:6]), "skiff-shim")
	if whole, err := isUnpacked(path, packed); err != nil {
		return "", fmt.Errorf("install the shim: %w", err)
	} else if whole {
		return path, checkExec(path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("install the shim: %w", err)
	}
	if err := unpackTo(path, packed); err != nil {
		return "", fmt.Errorf("install the shim: %w", err)
	}
	return path, checkExec(path)
}

// isUnpacked says whether a file holds what is packed. Shims that run from another
// go on: it is replaced, not overwritten.
func isUnpacked(path string, packed []byte) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return false, err
	}
	have, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(zr, want)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		m, herr := io.ReadFull(f, have)
		if herr != nil && herr != io.EOF && herr != io.ErrUnexpectedEOF {
			return false, herr
		}
		if !bytes.Equal(want[:n], have[:m]) {
			return false, nil
		}
		if err != nil {
			st, err := f.Stat()
			return err == nil && st.Mode().Perm()&0o111 != 0, nil
		}
	}
}

func unpackTo(path string, packed []byte) (err error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = io.Copy(f, zr); err != nil {
		return err
	}
	if err = f.Chmod(0o755); err != nil {
		return err
	}
	// A crash must not leave a broken binary under the final name.
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// checkExec refuses a binary on a file system that does not execute programs.
func checkExec(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a file system mounted noexec: choose a --data-dir from which programs can be executed", path)
	}
	return nil
}

// pruneShims removes shim binaries that no sandbox uses.
func pruneShims(dir, current string, used map[string]bool) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, e := range ents {
		p := filepath.Join(dir, e.Name(), "skiff-shim")
		if len(e.Name()) != len("shim-")+12 || p == current || used[p] {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Dir(p)))
	}
	return errors.Join(errs...)
}
