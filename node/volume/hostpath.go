package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// checkHostPath makes and checks a host path as its type says.
func checkHostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if !filepath.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
		return fmt.Errorf("host path %q must be absolute and free of '..'", h.Path)
	}
	if kind == v1.HostPathUnset {
		return nil
	}
	info, err := os.Stat(h.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && kind == v1.HostPathDirectoryOrCreate {
		return os.MkdirAll(h.Path, 0o755)
	}
	if missing && kind == v1.HostPathFileOrCreate {
		f, err := os.OpenFile(h.Path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	is := func(want string, ok bool) error {
		if err != nil || !ok {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, want)
		}
		return nil
	}
	var m os.FileMode
	if err == nil {
		m = info.Mode()
	}
	switch kind {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		return is("directory", m.IsDir())
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		return is("file", m.IsRegular())
	case v1.HostPathSocket:
		return is("socket file", m&os.ModeSocket != 0)
	case v1.HostPathCharDev:
		return is("character device", m&os.ModeCharDevice != 0)
	case v1.HostPathBlockDev:
		return is("block device", m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0)
	}
	return fmt.Errorf("%s is an invalid volume type", kind)
}
