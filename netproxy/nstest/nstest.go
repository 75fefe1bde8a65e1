// Package nstest runs tests inside network namespaces of their own.
//
// A test that needs root calls Run: its body runs in a child process that was
// born in a new network namespace. The kernel removes everything with the
// process, however it ends. Inside, New makes further namespaces, for pods and
// other hosts.
package nstest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const childEnv = "SKIFF_NSTEST"

// Run runs fn in a process with a new network namespace whose lo is up. It
// skips when not root.
func Run(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatalf("lo: %v", err)
		}
		fn(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.Command("/proc/self/exe", "-test.run="+pattern, "-test.v", "-test.count=1", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Pdeathsig is bound to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	switch {
	case err != nil:
		t.Fatalf("in its own network namespace: %v\n%s", err, out.String())
	case strings.Contains(out.String(), "--- SKIP"):
		t.Skip(out.String())
	case testing.Verbose():
		t.Log("\n" + out.String())
	}
}

// NS is a network namespace. It is gone when the test ends.
type NS struct {
	t      testing.TB
	handle netns.NsHandle
}

// New makes a namespace with lo up.
func New(t testing.TB) *NS {
	t.Helper()
	type result struct {
		h   netns.NsHandle
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- result{err: err}
			return
		}
		h, err := netns.Get()
		ch <- result{h, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatalf("new network namespace: %v", r.err)
	}
	ns := &NS{t: t, handle: r.h}
	t.Cleanup(func() { _ = ns.handle.Close() })
	ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// Path names the namespace for other code of this process.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle)) }

// FD is the namespace's file descriptor.
func (ns *NS) FD() int { return int(ns.handle) }

// Try runs fn inside the namespace. Sockets that fn makes stay there.
func (ns *NS) Try(fn func() error) error {
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns.handle); err != nil {
			ch <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		ch <- fn()
	}()
	return <-ch
}

// Do is Try that fails the test.
func (ns *NS) Do(fn func() error) {
	ns.t.Helper()
	if err := ns.Try(fn); err != nil {
		ns.t.Fatal(err)
	}
}

// Connect joins two namespaces by a veth with one address at each end; a nil
// namespace is the caller's. Addresses are in CIDR form.
func Connect(t testing.TB, a *NS, nameA, addrA string, b *NS, nameB, addrB string) {
	t.Helper()
	run := func(ns *NS, fn func() error) error {
		if ns == nil {
			return fn()
		}
		return ns.Try(fn)
	}
	up := func(name, addr string) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			ad, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, ad); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}
	}
	err := run(a, func() error {
		la := netlink.NewLinkAttrs()
		la.Name = nameA
		v := &netlink.Veth{LinkAttrs: la, PeerName: nameB}
		if b != nil {
			v.PeerNamespace = netlink.NsFd(b.FD())
		}
		return netlink.LinkAdd(v)
	})
	if err == nil {
		err = run(a, up(nameA, addrA))
	}
	if err == nil {
		err = run(b, up(nameB, addrB))
	}
	if err != nil {
		t.Fatalf("connect %s to %s: %v", nameA, nameB, err)
	}
}

// Serve answers TCP connections and UDP packets on addr with "name client-ip\n"
// and then echoes TCP data. A nil namespace is the caller's.
func Serve(t testing.TB, ns *NS, addr, name string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	open := func() (err error) {
		if l, err = net.Listen("tcp4", addr); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp4", addr)
		return err
	}
	err := error(nil)
	if ns == nil {
		err = open()
	} else {
		err = ns.Try(open)
	}
	if err != nil {
		t.Fatalf("serve %s: %v", name, err)
	}
	t.Cleanup(func() { l.Close(); p.Close() })
	go serveTCP(l, name)
	go serveUDP(p, name)
}

func greet(name string, a net.Addr) []byte {
	host, _, _ := net.SplitHostPort(a.String())
	return []byte(name + " " + host + "\n")
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := c.Write(greet(name, c.RemoteAddr())); err == nil {
				_, _ = io.Copy(c, c)
			}
		}()
	}
}

func serveUDP(p net.PacketConn, name string) {
	buf := make([]byte, 1500)
	for {
		_, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = p.WriteTo(greet(name, from), from)
	}
}

// Answer is what a server of Serve said.
type Answer struct{ Server, Client string }

// Ask connects from ns (nil: the caller's) and reads the greeting.
func Ask(ns *NS, network, addr string) (Answer, error) {
	c, err := Dial(ns, network, addr)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return Greeting(c)
}

// Dial connects from ns (nil: the caller's).
func Dial(ns *NS, network, addr string) (net.Conn, error) {
	var c net.Conn
	dial := func() (err error) {
		c, err = net.DialTimeout(network, addr, 3*time.Second)
		return err
	}
	if ns == nil {
		return c, dial()
	}
	err := ns.Try(dial)
	return c, err
}

// Greeting reads the first answer on a connection; a UDP packet is sent first.
func Greeting(c net.Conn) (Answer, error) {
	wait := 3 * time.Second
	if _, udp := c.(*net.UDPConn); udp {
		wait = time.Second
	}
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, udp := c.(*net.UDPConn); udp {
		if _, err := c.Write([]byte("hello")); err != nil {
			return Answer{}, err
		}
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	if err != nil {
		return Answer{}, err
	}
	f := strings.Fields(string(buf[:n]))
	if len(f) != 2 {
		return Answer{}, fmt.Errorf("unexpected answer %q", buf[:n])
	}
	return Answer{Server: f[0], Client: f[1]}, nil
}

// Isolate moves the calling goroutine, for good, to a thread with a new network
// namespace whose lo is up. It is for benchmarks, which cannot run in another
// process; goroutines that they start stay outside.
func Isolate(b *testing.B) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: makes network namespaces")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatalf("new network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		b.Fatalf("lo: %v", err)
	}
}
