package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// linuxDevices makes a container's device nodes and the rules that let it use
// them. Nothing else is allowed, except the usual harmless ones that
// libcontainer adds, and everything for privileged containers.
func linuxDevices(devs []Device, privileged bool) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	var nodes []specs.LinuxDevice
	if privileged {
		rules[0].Allow = true
		var err error
		if nodes, err = hostDevices(); err != nil {
			return nil, nil, err
		}
	}
	for _, d := range devs {
		if d.ContainerPath == "" {
			d.ContainerPath = d.HostPath
		}
		if d.Permissions == "" {
			d.Permissions = "rwm"
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			return nil, nil, fmt.Errorf("device %s: permissions %q are not made of r, w and m", d.HostPath, d.Permissions)
		}
		found := false
		err := filepath.WalkDir(d.HostPath, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.IsDir() {
				return nil
			}
			target := d.ContainerPath + strings.TrimPrefix(p, d.HostPath)
			node, err := deviceNode(p, target)
			if errors.Is(err, errNoDevice) {
				return nil
			}
			if err != nil {
				return err
			}
			found = true
			nodes = append(nodes, node)
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: d.Permissions})
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		if !found {
			return nil, nil, fmt.Errorf("device %s: %w", d.HostPath, errNoDevice)
		}
	}
	return nodes, rules, nil
}

var errNoDevice = errors.New("not a device node")

func deviceNode(path, target string) (specs.LinuxDevice, error) {
	fi, err := os.Stat(path) // devices are often links
	if err != nil {
		return specs.LinuxDevice{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode()&os.ModeDevice == 0 {
		return specs.LinuxDevice{}, errNoDevice
	}
	kind := "b"
	if fi.Mode()&os.ModeCharDevice != 0 {
		kind = "c"
	}
	perm := fi.Mode().Perm()
	return specs.LinuxDevice{
		Path: target, Type: kind,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &perm, UID: &st.Uid, GID: &st.Gid,
	}, nil
}

// hostDevices are all device nodes of the host that make sense in a container
// with a /dev of its own.
func hostDevices() ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it vanished
		}
		if e.IsDir() {
			switch p {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		}
		if p == "/dev/console" || p == "/dev/ptmx" || e.Type()&os.ModeDevice == 0 {
			return nil
		}
		node, err := deviceNode(p, p)
		if err == nil {
			out = append(out, node)
		}
		return nil
	})
	return out, err
}
