package binary

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// ErrPlace means that the program cannot be replaced here.
var ErrPlace = errors.New("skiff cannot replace its program")

// place is the file that skiff is started from. Beside it are, during a switch,
// the next program, and the previous one: going back needs no room then.
type place struct{ path string }

func (p place) beside(what string) string {
	return filepath.Join(filepath.Dir(p.path), "."+filepath.Base(p.path)+"."+what)
}
func (p place) next() string     { return p.beside("next") }
func (p place) previous() string { return p.beside("previous") }

// sum is the SHA-256 of the file.
func (p place) sum() (string, error) { return Sum(p.path) }

// Sum is the SHA-256 of a file, in hex.
func Sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// check finds out whether a program of that size can be put here.
func (p place) check(size, margin int64) error {
	st, err := os.Lstat(p.path)
	if err != nil {
		return fmt.Errorf("%w: the file it was started from: %w; put it back, or restart skiff from another", ErrPlace, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no file", ErrPlace, p.path)
	}
	err = remove(p.beside("probe"))
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(p.beside("probe"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w: %w: make %s writable for skiff, or change the program by hand: stop skiff, replace %s, start it", ErrPlace, err, filepath.Dir(p.path), p.path)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return room(filepath.Dir(p.path), size+margin)
}

// prepare puts a program beside the file, with the file's mode and owner, and
// another name on the present one.
func (p place) prepare(from, sum string) error {
	if err := p.stage(from, sum); err != nil {
		return errors.Join(err, p.tidy())
	}
	if err := remove(p.previous()); err != nil {
		return err
	}
	err := os.Link(p.path, p.previous())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EMLINK) { // no hard links here
		err = p.copyOwn()
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(p.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w: keep the present program: %w", ErrPlace, err), p.tidy())
	}
	return nil
}

// stage copies: a link would let whoever writes into the file change the store.
func (p place) stage(from, sum string) error {
	st, err := os.Stat(p.path)
	if errors.Is(err, fs.ErrNotExist) { // it was taken away: as a program is
		st, err = os.Stat(from)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	if err := copyProgram(p.next(), from, sum, st); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return nil
}

func (p place) copyOwn() error {
	st, err := os.Stat(p.path)
	if err != nil {
		return err
	}
	return copyProgram(p.previous(), p.path, "", st)
}

// copyProgram makes a durable copy with mode and owner of like. A sum that is not
// "" has to be that of the content.
func copyProgram(to, from, sum string, like fs.FileInfo) (err error) {
	if err := remove(to); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			os.Remove(to) // it may be a part
		}
	}()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), in); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); sum != "" && got != sum {
		return fmt.Errorf("%w: %s has the SHA-256 %s: it is damaged, remove it", ErrContent, from, got)
	}
	if owner, ok := like.Sys().(*syscall.Stat_t); ok {
		if err := out.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if err := out.Chmod(like.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid)); err != nil {
		return err
	}
	return out.Sync()
}

// change puts the next program in place.
func (p place) change() error { return p.rename(p.next()) }

func (p place) rename(from string) error {
	if err := os.Rename(from, p.path); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return durable.SyncDir(filepath.Dir(p.path))
}

// back makes the file hold the program with that sum again, if it does not:
// the one kept beside it, or else the store's.
func (p place) back(s *Store, sum string) error {
	if got, err := p.sum(); err == nil && got == sum {
		return nil
	}
	if got, err := Sum(p.previous()); err == nil && got == sum {
		return p.rename(p.previous())
	}
	if err := p.stage(s.Path(sum), sum); err != nil {
		return err
	}
	return p.change()
}

// tidy removes what a switch leaves beside the file.
func (p place) tidy() error {
	return errors.Join(remove(p.next()), remove(p.previous()), remove(p.beside("probe")))
}

// remove is for files that may not be there; that is no error on a disk that cannot
// be written either.
func remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ownPath is the file that this process was started from; it may hold another
// program by now.
func ownPath() (string, error) {
	path, err := os.Readlink("/proc/self/exe")
	return strings.TrimSuffix(path, " (deleted)"), err
}

// Put makes path hold the program of this process, with the mode and owner of what
// is there, if anything is. It tells whether there was anything to do.
func Put(path string) (bool, error) {
	sum, err := Sum("/proc/self/exe")
	if err != nil {
		return false, fmt.Errorf("read the own program: %w", err)
	}
	p := place{path}
	have, err := p.sum()
	switch {
	case err == nil && have == sum:
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("%w: %w", ErrPlace, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("%w: %w", ErrPlace, err)
	}
	if err := p.stage("/proc/self/exe", sum); err != nil {
		return false, err
	}
	return true, p.change()
}
