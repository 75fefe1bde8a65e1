package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// heldRecord is the file below StateDir that names the process which holds
// sockets open.
type heldRecord struct {
	PID  int    `json:"pid"`
	Addr string `json:"addr"`
}

// Listen opens a UDP and a TCP socket on addr (an IPv4 host:port) and has both
// held open by a small process that outlives skiff. While skiff is restarted,
// questions wait in the sockets; Listen of the next skiff gets the same two
// sockets back and answers them. It holds one address at a time.
//
// The sockets are taken back with pidfd_getfd(2), so the holder needs no
// protocol, and any version of skiff can take over from any other.
func (r *Runtime) Listen(ctx context.Context, addr string) (net.PacketConn, net.Listener, error) {
	udp, tcp, err := r.takeHeld(addr)
	if err == nil {
		return udp, tcp, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		r.log.Info("the sockets of the last run are not usable", "address", addr, "err", err)
	}
	if err := r.DropSockets(); err != nil {
		return nil, nil, err
	}
	var lc net.ListenConfig
	if udp, err = lc.ListenPacket(ctx, "udp4", addr); err != nil {
		return nil, nil, err
	}
	if tcp, err = lc.Listen(ctx, "tcp4", addr); err != nil {
		return nil, nil, errors.Join(err, udp.Close())
	}
	if err := r.hold(addr, udp.(*net.UDPConn), tcp.(*net.TCPListener)); err != nil {
		// They serve all the same, only not beyond this process.
		r.log.Warn("sockets will not outlive this process", "address", addr, "err", err)
	}
	return udp, tcp, nil
}

func (r *Runtime) heldPath() string { return filepath.Join(r.cfg.StateDir, "held.json") }

// takeHeld gives the sockets that a holder has for addr.
func (r *Runtime) takeHeld(addr string) (udp net.PacketConn, tcp net.Listener, err error) {
	_, pidfd, err := r.holder(addr)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(pidfd)
	take := func(fd int, use func(*os.File) (net.Addr, error)) error {
		n, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			return fmt.Errorf("take socket %d back: %w", fd, err)
		}
		f := os.NewFile(uintptr(n), "held")
		defer f.Close()
		got, err := use(f)
		if err != nil {
			return fmt.Errorf("use socket %d: %w", fd, err)
		}
		if got.String() != addr {
			return fmt.Errorf("socket %d is bound to %s", fd, got)
		}
		return nil
	}
	err = take(shimproto.HeldUDP, func(f *os.File) (net.Addr, error) {
		if udp, err = net.FilePacketConn(f); err != nil {
			return nil, err
		}
		return udp.LocalAddr(), nil
	})
	if err == nil {
		err = take(shimproto.HeldTCP, func(f *os.File) (net.Addr, error) {
			if tcp, err = net.FileListener(f); err != nil {
				return nil, err
			}
			return tcp.Addr(), nil
		})
	}
	if err != nil {
		if udp != nil {
			udp.Close()
		}
		if tcp != nil {
			tcp.Close()
		}
		return nil, nil, err
	}
	return udp, tcp, nil
}

// holder finds the living process that the record names; with addr "" whatever
// it holds. The caller closes the descriptor.
func (r *Runtime) holder(addr string) (heldRecord, int, error) {
	var rec heldRecord
	b, err := os.ReadFile(r.heldPath())
	if err != nil {
		return rec, 0, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, 0, fmt.Errorf("%s: %w", r.heldPath(), err)
	}
	if addr != "" && rec.Addr != addr {
		return rec, 0, fmt.Errorf("held sockets are for %s", rec.Addr)
	}
	pidfd, err := unix.PidfdOpen(rec.PID, 0)
	if err != nil {
		return rec, 0, fmt.Errorf("holder of the sockets: %w", err)
	}
	// Its number may have gone to another process since.
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", rec.PID))
	if err != nil || string(b) != strings.Join(holdArgs(r.cfg.StateDir, rec.Addr), "\x00")+"\x00" {
		unix.Close(pidfd)
		return rec, 0, fmt.Errorf("process %d does not hold our sockets", rec.PID)
	}
	return rec, pidfd, nil
}

func holdArgs(stateDir, addr string) []string {
	return []string{"skiff-shim", shimproto.HoldCommand, stateDir, addr}
}

// hold starts the holder.
func (r *Runtime) hold(addr string, udp *net.UDPConn, tcp *net.TCPListener) error {
	uf, err := udp.File()
	if err != nil {
		return err
	}
	defer uf.Close()
	tf, err := tcp.File()
	if err != nil {
		return err
	}
	defer tf.Close()
	cmd := exec.Command(r.shim)
	cmd.Args = holdArgs(r.cfg.StateDir, addr)
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{uf, tf} // shimproto.HeldUDP, HeldTCP
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	place, err := r.cgroups.escape(filepath.Join("/", r.cfg.CgroupRoot, "shims"), cmd.SysProcAttr)
	if err != nil {
		return err
	}
	err = cmd.Start()
	if perr := place(cmd); err == nil && perr != nil {
		err = errors.Join(perr, cmd.Process.Kill(), cmd.Wait())
	}
	// Handing the files to a child has made the sockets blocking, also for us:
	// then a read could not be ended by closing them.
	err = errors.Join(err, nonblocking(udp), nonblocking(tcp))
	if err != nil {
		return fmt.Errorf("start the holder of the sockets: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it ends with DropSockets, or after us
	b, err := json.Marshal(heldRecord{cmd.Process.Pid, addr})
	if err == nil {
		err = os.WriteFile(r.heldPath(), b, 0o600)
	}
	if err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	return nil
}

func nonblocking(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetNonblock(int(fd), true) }); err != nil {
		return err
	}
	return set
}

// DropSockets ends the process that holds sockets open, if there is one.
func (r *Runtime) DropSockets() error {
	_, pidfd, err := r.holder("")
	if err == nil {
		err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		if err == nil {
			// The Go runtime sends itself signals, which end a poll early.
			end := time.Now().Add(5 * time.Second)
			for err = unix.EINTR; err == unix.EINTR; {
				left := max(0, time.Until(end).Milliseconds())
				_, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left))
			}
		}
		unix.Close(pidfd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the holder of the sockets: %w", err)
		}
	}
	if err := os.Remove(r.heldPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the holder of the sockets: %w", err)
	}
	return nil
}
