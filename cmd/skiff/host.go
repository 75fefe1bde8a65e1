package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/netproxy/netdump"
)

// needRoot refuses to go on without root, in one line.
func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s has to run as root: try sudo", what)
	}
	return nil
}

// checkHost refuses a host that cannot run pods and says what is missing.
func checkHost() error {
	var missing []string
	fs, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("read /proc/filesystems: %w", err)
	}
	if !strings.Contains(string(fs), "\toverlay\n") {
		missing = append(missing, "the overlay file system (modprobe overlay)")
	}
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		missing = append(missing, "network namespaces (CONFIG_NET_NS)")
	}
	if !cgroupsMounted() {
		missing = append(missing, "cgroups mounted at /sys/fs/cgroup (v2: mount -t cgroup2 none /sys/fs/cgroup)")
	}
	if s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER); err != nil {
		missing = append(missing, "nftables (modprobe nf_tables)")
	} else {
		unix.Close(s)
	}
	if len(missing) > 0 {
		return fmt.Errorf("this host lacks %s", strings.Join(missing, " and "))
	}
	return nil
}

func cgroupsMounted() bool {
	for _, f := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"} {
		if _, err := os.Stat(f); err == nil {
			return true
		}
	}
	return false
}

// stateDir is where sockets and runtime state of the instance with this data
// directory live; it does not survive a reboot, nor do containers.
func stateDir(dataDir string) (string, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(abs))
	return filepath.Join("/run/skiff", hex.EncodeToString(sum[:4])), nil
}

// makeStateDir makes the state directory. It is to be in memory, where secrets
// and tokens may lie: where /run is on a disk it becomes a tmpfs of its own. A
// directory that holds something already is left as it is.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("state directory %s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if fs.Type == unix.TMPFS_MAGIC || len(entries) > 0 {
		return nil
	}
	if err := unix.Mount("skiff", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	return nil
}

// hostAddress finds the address other hosts reach this one by: that of the
// default route, else of the first interface that is up, else loopback.
func hostAddress() (netip.Addr, error) {
	routes, err := netdump.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err == nil {
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
				continue
			}
			if a, ok := firstAddress(r.LinkIndex); ok {
				return a, nil
			}
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 || strings.HasPrefix(l.Name, "skiff") {
			continue
		}
		if a, ok := firstAddress(l.Index); ok {
			return a, nil
		}
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 && l.Flags&net.FlagUp != 0 {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
		}
	}
	return netip.Addr{}, errors.New("no network interface is up: try ip link set lo up, or --advertise-address")
}

func firstAddress(index int) (netip.Addr, bool) {
	link, err := net.InterfaceByIndex(index)
	if err != nil {
		return netip.Addr{}, false
	}
	addrs, err := link.Addrs()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}
