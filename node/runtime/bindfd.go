package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/unmount"
)

// byDescriptor matches mount sources that name an open file of a process.
var byDescriptor = regexp.MustCompile(`^/proc/(self|[0-9]+)/fd/[0-9]+$`)

// bindsName is where such files get a path, in a sandbox's directory.
const bindsName = "binds"

// bindDescriptors gives mount sources that are open files a path: the kernel
// does not bind another mount namespace's descriptors. The paths are needed
// until the container has started; release removes them.
func (s *Sandbox) bindDescriptors(c *ContainerConfig) (release func() error, err error) {
	var paths []string
	release = func() error {
		var errs []error
		for _, p := range paths {
			if err := unmount.Tree(p); err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, os.Remove(p)) // never recursively: it may be somebody's data
		}
		return errors.Join(errs...)
	}
	mounts := c.Mounts
	copied := false
	for i, m := range c.Mounts {
		if !byDescriptor.MatchString(m.HostPath) {
			continue
		}
		if !copied {
			mounts, copied = append([]Mount(nil), mounts...), true
		}
		p := filepath.Join(s.dir, bindsName, c.ID+"-"+strconv.Itoa(i))
		if err := bindPath(m.HostPath, p); err != nil {
			return nil, errors.Join(fmt.Errorf("mount at %s: %w", m.Destination, err), release())
		}
		paths = append(paths, p)
		mounts[i].HostPath = p
	}
	c.Mounts = mounts
	return release, nil
}

// bindPath mounts what source names, without what else is mounted below it, as
// kubelet does for a subPath.
func bindPath(source, target string) error {
	fi, err := os.Stat(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s: %w", source, err), os.Remove(target))
	}
	return nil
}
