package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	goruntime "runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// DialPort connects to localhost:port inside the sandbox's network namespace,
// by IPv4 and then by IPv6.
func (s *Sandbox) DialPort(ctx context.Context, port int32) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d is not within 1 to 65535", port)
	}
	if !s.Alive() {
		return nil, ErrSandboxGone
	}
	var v4 unix.Sockaddr = &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	var v6 unix.Sockaddr = &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}
	c, err4 := s.dial(ctx, unix.AF_INET, v4)
	if err4 == nil {
		return c, nil
	}
	c, err6 := s.dial(ctx, unix.AF_INET6, v6)
	if err6 == nil {
		return c, nil
	}
	return nil, fmt.Errorf("failed to connect to localhost:%d inside pod %s/%s: IPv4: %w, IPv6: %w", port, s.cfg.Namespace, s.cfg.Name, err4, err6)
}

func (s *Sandbox) dial(ctx context.Context, family int, addr unix.Sockaddr) (net.Conn, error) {
	fd, err := s.socket(family)
	if err != nil {
		return nil, err
	}
	// From here on the socket is like any other: its namespace was decided
	// when it was made.
	err = unix.Connect(fd, addr)
	f := os.NewFile(uintptr(fd), "pod-socket")
	defer f.Close()
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, os.NewSyscallError("connect", err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	if err := awaitConnect(f); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

func awaitConnect(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(fds, 0); err == nil && n == 0 {
			return false
		}
		var v int
		if v, serr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); serr == nil && v != 0 {
			serr = unix.Errno(v)
		}
		return true
	})
	return errors.Join(err, serr)
}

// socket makes a TCP socket in the sandbox's network namespace.
func (s *Sandbox) socket(family int) (fd int, err error) {
	const kind = unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if s.cfg.HostNetwork {
		return unix.Socket(family, kind, 0)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(s.pid) + "/ns/net")
	if err != nil {
		return -1, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return -1, err
	}
	defer home.Close()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is in the wrong namespace for a moment. If it cannot be
		// brought back it stays locked and ends with this goroutine.
		goruntime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			goruntime.UnlockOSThread()
			done <- result{-1, fmt.Errorf("enter the pod's network namespace: %w", err)}
			return
		}
		fd, err := unix.Socket(family, kind, 0)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			goruntime.UnlockOSThread()
		}
		done <- result{fd, err}
	}()
	res := <-done
	return res.fd, res.err
}
