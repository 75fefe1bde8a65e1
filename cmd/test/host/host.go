// Package host makes throw-away hosts on one Linux machine, for the demo, the
// benchmarks and the integration tests: a network namespace that the machine
// reaches over a veth pair, and a skiff server in it.
//
// Limits: the hosts share the machine's processes, mounts and cgroups; only
// their network is their own. Needs root.
package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with one address of its own.
type Host struct {
	Name string
	// Addr is the host's address, Outside that of the machine on the link
	// between them.
	Addr, Outside string
	ns            netns.NsHandle
	lock          net.Listener
}

// New makes host number n (0 to 255), which decides its addresses:
// 10.199.n.2, seen from 10.199.n.1. A host of that name that another process
// uses is an error; one that a killed process left behind is removed first,
// with the processes in it.
func New(name string, n uint8) (h *Host, err error) {
	h = &Host{Name: name, Addr: fmt.Sprintf("10.199.%d.2", n), Outside: fmt.Sprintf("10.199.%d.1", n)}
	if h.lock, err = lock(name); err != nil {
		return nil, err
	}
	if err := removeLeftover(name); err != nil {
		return nil, errors.Join(err, h.lock.Close())
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	orig, err := netns.Get()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("own network namespace: %w", err), h.lock.Close())
	}
	defer orig.Close()
	if h.ns, err = netns.NewNamed(name); err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), h.lock.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if err := netns.Set(orig); err != nil {
		return nil, fmt.Errorf("go back to own network namespace: %w", err)
	}
	return h, h.connect()
}

func (h *Host) connect() error {
	near, far := h.Name+"-o", "eth0"
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: far, PeerNamespace: netlink.NsFd(h.ns)}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("make veth pair %s: %w", near, err)
	}
	if err := up(nil, near, h.Outside); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(h.ns)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", h.Name, err)
	}
	defer inside.Close()
	if err := up(inside, "lo", ""); err != nil {
		return err
	}
	if err := up(inside, far, h.Addr); err != nil {
		return err
	}
	if err := inside.RouteAdd(&netlink.Route{Gw: net.ParseIP(h.Outside)}); err != nil {
		return fmt.Errorf("default route of %s: %w", h.Name, err)
	}
	return h.awaitPath()
}

// awaitPath returns when packets get through. The kernel drops the first ones
// on a new link now and then, and tries again only after a second.
func (h *Host) awaitPath() error {
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(h.Addr, "1"), 100*time.Millisecond)
		if err == nil {
			return c.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s cannot be reached: %w", h.Name, err)
		}
	}
}

// up brings a link up and gives it an address in a /24. A nil handle means the
// current namespace.
func up(h *netlink.Handle, name, addr string) error {
	if h == nil {
		var err error
		if h, err = netlink.NewHandle(); err != nil {
			return err
		}
		defer h.Close()
	}
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr + "/24")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(l, a); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// Start starts cmd inside the host's network.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.Do(cmd.Start)
}

// Do runs fn on a thread inside the host's network. Goroutines that fn starts
// are not inside.
func (h *Host) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is thrown away with the goroutine: it stays locked.
		runtime.LockOSThread()
		if err := netns.Set(h.ns); err != nil {
			done <- fmt.Errorf("enter %s: %w", h.Name, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Close removes the host; its links vanish with it.
func (h *Host) Close() error {
	return errors.Join(h.ns.Close(), remove(h.Name), h.lock.Close())
}

// lock holds the name for this process, until it is closed or the process
// ends: an abstract socket leaves no file behind.
func lock(name string) (net.Listener, error) {
	l, err := net.Listen("unix", "@skiff-test-host-"+name)
	if err != nil {
		return nil, fmt.Errorf("host %s is in use by another run on this machine: %w", name, err)
	}
	return l, nil
}

// removeLeftover ends the processes in a host that a killed process left and
// removes it. The caller holds its lock.
func removeLeftover(name string) error {
	ns, err := netns.GetFromName(name)
	if err == nil {
		defer ns.Close()
		if err := killInside(ns); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("what is left of host %s: %w", name, err)
	}
	return remove(name)
}

func killInside(ns netns.NsHandle) error {
	var want, got unix.Stat_t
	if err := unix.Fstat(int(ns), &want); err != nil {
		return err
	}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, path := range paths {
		if unix.Stat(path, &got) != nil || got.Dev != want.Dev || got.Ino != want.Ino {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return err
		}
		if pid == os.Getpid() {
			continue // our main thread may be one that Do threw away
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d of a run before: %w", pid, err)
		}
	}
	return nil
}

// remove removes what is there of the host's namespace and links.
func remove(name string) error {
	var errs []error
	// After a reboot on a machine that keeps /run, the name is a plain file.
	path := filepath.Join("/run/netns", name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmount network namespace %s: %w", name, err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove network namespace %s: %w", name, err))
	}
	// The pair goes when the last process of the namespace does; what is left
	// of it on our side need not wait.
	if l, err := netlink.LinkByName(name + "-o"); err == nil {
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s-o: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
