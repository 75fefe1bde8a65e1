package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// A layer's tar may contain "tmp/file" without "tmp/". Its directory then has
// made-up attributes, and in an overlay the topmost directory's attributes
// win: /tmp would lose its 1777. Other stores unpack each layer on top of its
// parents for that reason, and can then not share it between images. Here the
// layer says which directories are implied, the image remembers what they
// really look like, and a container's upper directory is given those, where
// they win in turn.

// dirAttr is what a directory must look like.
type dirAttr struct {
	Path string `json:"path"` // slash separated, relative
	Mode uint32 `json:"mode"` // permissions with setuid, setgid and sticky bits
	UID  int    `json:"uid,omitempty"`
	GID  int    `json:"gid,omitempty"`
}

// dirWatch collects the directories a tar has and those it takes for granted.
type dirWatch struct{ has, needs map[string]bool }

func newDirWatch() *dirWatch {
	return &dirWatch{has: map[string]bool{".": true}, needs: map[string]bool{}}
}

func (w *dirWatch) see(h *tar.Header) {
	name := path.Clean(strings.TrimLeft(path.Clean("/"+h.Name), "/"))
	if h.Typeflag == tar.TypeDir {
		w.has[name] = true
	}
	for d := path.Dir(name); d != "." && d != "/"; d = path.Dir(d) {
		w.needs[d] = true
	}
}

func (w *dirWatch) implied() []string {
	var out []string
	for d := range w.needs {
		if !w.has[d] {
			out = append(out, d)
		}
	}
	sort.Strings(out)
	return out
}

// impliedDirs finds out what an image's implied directories look like: like
// those of the nearest layer below that has them for real. Their parents are
// listed too, since they are made along with them.
func (s *Store) impliedDirs(diffIDs []string) ([]dirAttr, error) {
	infos := make([]*layerInfo, len(diffIDs))
	implied := make([]map[string]bool, len(diffIDs))
	all := map[string]bool{}
	for i, id := range diffIDs {
		var err error
		if infos[i], err = s.layerInfo(id); err != nil {
			return nil, err
		}
		implied[i] = map[string]bool{}
		for _, d := range infos[i].Implied {
			implied[i][d] = true
			all[d] = true
		}
	}
	// attr returns a directory's attributes as the image means them, and
	// whether the overlay would show others.
	attr := func(dir string) (a dirAttr, wrong, ok bool, err error) {
		for i := len(diffIDs) - 1; i >= 0; i-- {
			fi, err := os.Lstat(s.path("layers", layerName(diffIDs[i]), "fs", filepath.FromSlash(dir)))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
				continue
			}
			if err != nil {
				return a, false, false, err
			}
			if !fi.IsDir() {
				return a, false, false, nil // a whiteout or file: nothing below counts
			}
			if implied[i][dir] {
				wrong = true
				continue
			}
			st := fi.Sys().(*syscall.Stat_t)
			return dirAttr{Path: dir, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid)}, wrong, true, nil
		}
		return a, false, false, nil
	}
	need := map[string]dirAttr{}
	for d := range all {
		a, wrong, ok, err := attr(d)
		if err != nil {
			return nil, fmt.Errorf("implied directories: %w", err)
		}
		if !ok || !wrong {
			continue
		}
		need[d] = a
		for p := path.Dir(d); p != "."; p = path.Dir(p) {
			if _, done := need[p]; done {
				continue
			}
			pa, _, ok, err := attr(p)
			if err != nil {
				return nil, fmt.Errorf("implied directories: %w", err)
			}
			if ok {
				need[p] = pa
			}
		}
	}
	var out []dirAttr
	for _, a := range need {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

// makeDirs gives directories in a fresh upper directory their attributes.
func makeDirs(upper string, dirs []dirAttr) error {
	for _, d := range dirs { // parents sort before their children
		p := filepath.Join(upper, filepath.FromSlash(d.Path))
		if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Lchown(p, d.UID, d.GID); err != nil {
			return err
		}
		if err := syscall.Chmod(p, d.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: p, Err: err}
		}
	}
	return nil
}
