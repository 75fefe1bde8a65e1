package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Place is where a node keeps the logs of its pods. Each pod has a folder, and keeps
// it for its life, also when another Dir is chosen meanwhile.
//
// Dir may be shared with others, such as another skiff or a kubelet that was here
// before. Of folders outside of the node's own directory there are therefore records:
// a link with the pod's UID as its name, made before the folder and removed after it.
// Nothing outside is removed that has no record. Not safe for concurrent use with the
// same pod.
type Place struct {
	Dir     string // of pods that begin now
	DataDir string // of the node; what is below it is the node's alone
}

// OwnDir is where logs lie that others do not look for.
func (p Place) OwnDir() string { return filepath.Join(p.DataDir, "logs") }

func (p Place) records() string { return filepath.Join(p.DataDir, "log-folders") }

// Base is the name of a pod's folder.
func Base(namespace, name, uid string) string { return namespace + "_" + name + "_" + uid }

// Folder says where the logs of a pod are, or are to be.
func (p Place) Folder(namespace, name, uid string) string {
	if dir, err := p.record(uid); err == nil {
		return dir
	}
	base := Base(namespace, name, uid)
	if info, err := os.Lstat(filepath.Join(p.OwnDir(), base)); err == nil && info.IsDir() {
		return filepath.Join(p.OwnDir(), base)
	}
	return filepath.Join(p.Dir, base)
}

// record reads which folder a pod has outside of OwnDir.
func (p Place) record(uid string) (string, error) {
	dir, err := os.Readlink(filepath.Join(p.records(), uid))
	if err == nil && (!filepath.IsAbs(dir) || !strings.HasSuffix(dir, "_"+uid)) {
		return "", fmt.Errorf("%s names %s, which is no folder of that pod's logs", filepath.Join(p.records(), uid), dir)
	}
	return dir, err
}

// Make makes a pod's folder, which is what Folder said.
func (p Place) Make(folder, uid string) error {
	if filepath.Dir(folder) != p.OwnDir() {
		if dir, err := p.record(uid); err != nil || dir != folder {
			if err := os.MkdirAll(p.records(), 0o700); err != nil {
				return err
			}
			path := filepath.Join(p.records(), uid)
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.Symlink(folder, path); err != nil {
				return err
			}
		}
	}
	return os.MkdirAll(folder, 0o755)
}

// Remove removes the logs of a pod and the links to them.
func (p Place) Remove(namespace, name, uid string) error {
	return errors.Join(os.RemoveAll(filepath.Join(p.OwnDir(), Base(namespace, name, uid))), p.drop(uid))
}

// drop removes what a record names, and then the record.
func (p Place) drop(uid string) error {
	dir, err := p.record(uid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = errors.Join(removeLinks(dir, false), os.RemoveAll(dir)); err != nil {
			return err // and once more by the next one who sweeps
		}
	}
	return errors.Join(err, os.Remove(filepath.Join(p.records(), uid)))
}

// uids are those of pods with a record.
func (p Place) uids() (out []string) {
	entries, _ := os.ReadDir(p.records()) // none if nothing was recorded yet
	for _, e := range entries {
		if e.Type() == fs.ModeSymlink {
			out = append(out, e.Name())
		}
	}
	return out
}

// Folders are the folders outside of OwnDir.
func (p Place) Folders() (out []string) {
	for _, uid := range p.uids() {
		if dir, err := p.record(uid); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// Sweep removes the logs outside of OwnDir of pods that are not to be kept, and links
// to logs of others that are no more.
func (p Place) Sweep(keep func(uid string) bool) error {
	var errs []error
	for _, uid := range p.uids() {
		if !keep(uid) {
			errs = append(errs, p.drop(uid))
		} else if dir, err := p.record(uid); err == nil {
			errs = append(errs, removeLinks(dir, true))
		}
	}
	return errors.Join(errs...)
}

// Clear removes all logs outside of OwnDir, and the directories that are empty then.
func (p Place) Clear() error {
	var dirs []string
	for _, f := range p.Folders() {
		if links, ok := linkDir(f); ok {
			dirs = append(dirs, links)
		}
		dirs = append(dirs, filepath.Dir(f))
	}
	err := p.Sweep(func(string) bool { return false })
	slices.Sort(dirs)
	for _, d := range slices.Compact(dirs) {
		_ = os.Remove(d) // not if others have something there
	}
	return err
}
