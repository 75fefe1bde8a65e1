package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	podsDir       = "pods"       // a log directory of this name has links
	containersDir = "containers" // beside it, here
	linkSuffix    = ".log"
	maxLinkName   = 255 // bytes, the limit of Linux' file systems
)

// linkDir is where links to the logs of a pod's folder are; false for none.
func linkDir(folder string) (string, bool) {
	logs := filepath.Dir(folder)
	return filepath.Join(filepath.Dir(logs), containersDir), filepath.Base(logs) == podsDir
}

// linkName is the name by which log collectors know a container's log. Like
// kubelet's it is cut at its end when it is too long.
func linkName(pod, namespace, container, id string) string {
	name := pod + "_" + namespace + "_" + container + "-" + id
	return name[:min(len(name), maxLinkName-len(linkSuffix))] + linkSuffix
}

// Link makes the link to a container's log, a file below folder, where collectors
// look for it: in the directory containers beside a log directory that is called
// pods. For others, and without a log, it does nothing. What has the name already
// and is not of this pod stays, and is an error.
func Link(folder, pod, namespace, container, id, log string) error {
	dir, ok := linkDir(folder)
	if !ok || !Exists(log) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, linkName(pod, namespace, container, id))
	err := os.Symlink(log, path)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	switch to, err := os.Readlink(path); {
	case err == nil && to == log:
		return nil
	case err != nil || !strings.HasPrefix(to, folder+"/"):
		return fmt.Errorf("%s is there, and is no link to a log of this pod", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(log, path)
}

// removeLinks removes the links that point below the pod's folder; when dead is set
// only those to logs that are no more.
func removeLinks(folder string, dead bool) error {
	dir, ok := linkDir(folder)
	if !ok {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink {
			continue
		}
		path := filepath.Join(dir, e.Name())
		to, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(to, folder+"/") || dead && Exists(to) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
