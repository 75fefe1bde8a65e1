package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What is being written has a name of its own, .NAME.tmp-RANDOM, and is locked
// by who writes it. So what a killed process has left is told from what another
// is writing now, and the next that writes NAME removes it.

func tempPrefix(name string) string { return "." + name + ".tmp-" }

// tempFile makes a file of mode 0600 in dir for what is to become name. It is
// unlocked when it is closed.
func tempFile(dir, name string) (*os.File, error) {
	dir = filepath.Clean(dir)
	clearTemp(dir, name)
	for {
		f, err := os.CreateTemp(dir, tempPrefix(name)+"*")
		if err != nil {
			return nil, inDir(dir, err)
		}
		if ours(f) {
			return f, nil
		}
		f.Close() // whoever cleared up was faster than the lock
	}
}

// tempDir is the like of tempFile for a directory, of mode 0700. Release removes
// what is still there under the name.
func tempDir(dir, name string) (path string, release func(), err error) {
	dir = filepath.Clean(dir)
	clearTemp(dir, name)
	for {
		path, err := os.MkdirTemp(dir, tempPrefix(name)+"*")
		if err != nil {
			return "", nil, inDir(dir, err)
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			os.Remove(path)
			return "", nil, err
		}
		if ours(f) {
			return path, func() {
				os.RemoveAll(path)
				f.Close()
			}, nil
		}
		f.Close()
	}
}

// inDir names the directory where something could not be made: the name of what
// it was tells nobody anything.
func inDir(dir string, err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("make a file in %s: %w", dir, err)
}

// ours locks f and says whether it is still under its name. A file system that
// can't lock is taken as it is.
func ours(f *os.File) bool {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return true
	}
	there, err := os.Lstat(f.Name())
	if err != nil {
		return false
	}
	own, err := f.Stat()
	return err == nil && os.SameFile(there, own)
}

// clearTemp removes what nobody is writing. It is a courtesy: that it fails is no
// reason not to write.
func clearTemp(dir, name string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix(name)) || !e.Type().IsRegular() && !e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(path)
		}
		f.Close()
	}
}
