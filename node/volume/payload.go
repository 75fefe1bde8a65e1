package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// file is one file of a volume that shows API data.
type file struct {
	data []byte
	mode os.FileMode
	uid  int // owner; 0 unless a token is for one user
}

const dataLink = "..data"

// writePayload makes dir show exactly these files. What containers see goes
// from the old to the new contents in one rename; nothing happens when
// nothing changed. A crash leaves the old contents and a directory that the
// next call removes.
func writePayload(dir string, files map[string]file, group *int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The volume itself looks like an emptyDir; that it is mounted read-only keeps
	// containers from writing to it.
	if err := os.Chmod(dir, dirMode(group)|0o777); err != nil {
		return err
	}
	if group != nil {
		if err := os.Chown(dir, 0, int(*group)); err != nil {
			return err
		}
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current == "" || !samePayload(filepath.Join(dir, current), files, group) {
		if current, err = swapPayload(dir, files, group); err != nil {
			return err
		}
	}
	return tidy(dir, current, files)
}

func dirMode(group *int64) os.FileMode {
	if group != nil {
		return 0o755 | os.ModeSetgid
	}
	return 0o755
}

func fileMode(m os.FileMode, group *int64) os.FileMode {
	if group != nil {
		return m | 0o440
	}
	return m
}

func samePayload(dir string, files map[string]file, group *int64) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := files[rel]
		if !ok {
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if info.Mode().Perm() != fileMode(want.mode, group) || !bytes.Equal(have, want.data) {
			return fs.SkipAll
		}
		n++
		return nil
	})
	// A file that is too many stops the walk: then fewer were counted, unless
	// it came last, so count what is there too.
	return err == nil && n == len(files) && countFiles(dir) == n
}

func countFiles(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return nil
	})
	return n
}

func swapPayload(dir string, files map[string]file, group *int64) (string, error) {
	tmp, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return "", err
	}
	keep := false
	defer func() {
		if !keep {
			os.RemoveAll(tmp)
		}
	}()
	chown := func(path string, uid int) error {
		if group == nil && uid == 0 {
			return nil
		}
		gid := 0
		if group != nil {
			gid = int(*group)
		}
		return os.Chown(path, uid, gid)
	}
	if err := errors.Join(chown(tmp, 0), os.Chmod(tmp, dirMode(group))); err != nil {
		return "", err
	}
	for name, f := range files {
		path := filepath.Join(tmp, name)
		if !filepath.IsLocal(name) {
			return "", fmt.Errorf("file name %q leads out of the volume", name)
		}
		for sub := filepath.Dir(name); sub != "."; sub = filepath.Dir(sub) {
			d := filepath.Join(tmp, sub)
			if err := errors.Join(os.MkdirAll(d, 0o755), chown(d, 0), os.Chmod(d, dirMode(group))); err != nil {
				return "", err
			}
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return "", err
		}
		if err := errors.Join(chown(path, f.uid), os.Chmod(path, fileMode(f.mode, group))); err != nil {
			return "", err
		}
	}
	link := filepath.Join(dir, "..data_tmp")
	_ = os.Remove(link)
	if err := os.Symlink(filepath.Base(tmp), link); err != nil {
		return "", err
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		return "", err
	}
	keep = true
	return filepath.Base(tmp), nil
}

// tidy makes the links that users see and removes those of files that went,
// and directories of former contents.
func tidy(dir, current string, files map[string]file) error {
	top := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		top[first] = true
	}
	for name := range top {
		link := filepath.Join(dir, name)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := os.Symlink(filepath.Join(dataLink, name), link); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n := e.Name(); !top[n] && n != dataLink && n != current {
			if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}
