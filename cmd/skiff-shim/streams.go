//go:build cgo

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// streams are a container's standard streams: output goes to the log and to
// attached clients, input comes from attached clients.
type streams struct {
	log       *slog.Logger
	logFile   *logFile
	stdinOnce bool
	tty       bool
	console   *console

	childEnds []*os.File // closed once the process has them
	outputs   []*os.File // read ends
	pumps     sync.WaitGroup

	mu      sync.Mutex
	stdin   *os.File // nil when closed or never open
	clients map[*client]struct{}
}

// client is an attached connection.
type client struct {
	conn           net.Conn
	stdout, stderr bool
}

type streamConfig struct {
	process   *libcontainer.Process
	tty       bool
	stdin     bool
	stdinOnce bool
	logPath   string
	log       *slog.Logger
}

// openStreams gives a process its standard streams. connected must follow.
func openStreams(c streamConfig) (_ *streams, err error) {
	s := &streams{log: c.log, stdinOnce: c.stdinOnce, tty: c.tty, clients: map[*client]struct{}{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.logFile, err = openLog(c.logPath); err != nil {
		return nil, fmt.Errorf("open the container's log: %w", err)
	}
	if c.tty {
		if s.console, err = newConsole(c.process); err != nil {
			return nil, err
		}
		return s, nil
	}
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		r, w, err = os.Pipe()
		return r, w
	}
	if c.stdin {
		r, w := pipe()
		if err != nil {
			return nil, err
		}
		c.process.Stdin, s.stdin = r, w
		s.childEnds = append(s.childEnds, r)
	}
	or, ow := pipe()
	er, ew := pipe()
	if err != nil {
		return nil, err
	}
	c.process.Stdout, c.process.Stderr = ow, ew
	s.childEnds = append(s.childEnds, ow, ew)
	s.outputs = []*os.File{or, er}
	return s, nil
}

// connected is called with what running the process returned. It keeps our
// ends of the streams, or cleans up and returns the error.
func (s *streams) connected(err error) error {
	for _, f := range s.childEnds {
		f.Close()
	}
	s.childEnds = nil
	if s.console != nil {
		master, cerr := s.console.receive(err)
		if err == nil {
			err = cerr
		}
		if err == nil {
			s.outputs = []*os.File{master}
			s.stdin = master
		}
	}
	if err != nil {
		s.close()
	}
	return err
}

// copyOutput starts copying the output to the log and to attached clients.
func (s *streams) copyOutput() {
	for i, f := range s.outputs {
		t, name := shimproto.FrameStdout, "stdout"
		if i == 1 {
			t, name = shimproto.FrameStderr, "stderr"
		}
		s.pumps.Go(func() {
			var line logLine
			pump(f, func(b []byte) {
				s.logFile.write(name, &line, b)
				s.send(t, b)
			})
			s.logFile.end(name, &line)
		})
	}
}

// terminal is the terminal's master, or nil.
func (s *streams) terminal() *os.File {
	if !s.tty {
		return nil
	}
	return s.outputs[0]
}

// bufs holds read buffers; streams that are silent hold none.
var bufs = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// lastRead bounds what is read once nobody waits for more: as much as a pipe can
// be made to hold without privileges.
const lastRead = 1 << 20

// pump reads until the end of f and hands each piece to fn. f must be
// non-blocking. After f's read deadline it waits for nothing more, but still reads
// what is there.
func pump(f *os.File, fn func([]byte)) {
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	waits := true
	for left := lastRead; left > 0; {
		var (
			n    int
			rerr error
			buf  *[]byte
		)
		read := func(fd uintptr) bool {
			buf = bufs.Get().(*[]byte)
			for {
				n, rerr = unix.Read(int(fd), *buf)
				if rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				bufs.Put(buf)
				buf = nil
				return false
			}
			return true
		}
		var err error
		if waits {
			if err = rc.Read(read); errors.Is(err, os.ErrDeadlineExceeded) {
				waits = false
				continue
			}
		} else {
			err = rc.Control(func(fd uintptr) { read(fd) })
			left -= max(n, 0)
		}
		if n > 0 && err == nil && rerr == nil {
			fn((*buf)[:n])
		}
		if buf != nil {
			bufs.Put(buf)
		}
		if err != nil || rerr != nil || n <= 0 { // a closed terminal reads as EIO
			return
		}
	}
}

// send gives output to the attached clients. It waits for slow ones, as a
// terminal would, but not for ever.
func (s *streams) send(t shimproto.FrameType, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		if t == shimproto.FrameStdout && !c.stdout || t == shimproto.FrameStderr && !c.stderr {
			continue
		}
		err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			err = shimproto.WriteFrame(c.conn, t, b)
		}
		if err != nil {
			delete(s.clients, c)
			c.conn.Close()
		}
	}
}

// waitFor lets the copying wait for more output no longer than d from now. What
// was written before is copied all the same, however slow its reader or the log is.
func (s *streams) waitFor(d time.Duration) {
	for _, f := range s.outputs {
		if err := f.SetReadDeadline(time.Now().Add(d)); err != nil {
			f.Close()
		}
	}
}

// finish waits until all output is in the log; processes that left the
// container but hold its streams open get until the timeout.
func (s *streams) finish(timeout time.Duration) {
	s.waitFor(timeout)
	s.pumps.Wait()
	s.close()
}

// exited tells the attached clients of the container's end.
func (s *streams) exited(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			if err := shimproto.WriteJSON(c.conn, shimproto.FrameExit, shimproto.Exit{ExitCode: code}); err != nil {
				s.log.Debug("tell an attached client of the end", "err", err)
			}
		}
		c.conn.Close()
	}
	s.clients = nil
}

func (s *streams) close() {
	for _, f := range append(s.childEnds, s.outputs...) {
		f.Close()
	}
	s.closeStdin()
	if s.console != nil {
		s.console.close()
	}
	if s.logFile != nil {
		s.logFile.close()
	}
}

func (s *streams) closeStdin() {
	s.mu.Lock()
	f := s.stdin
	s.stdin = nil
	s.mu.Unlock()
	if f != nil && !s.tty { // a terminal is closed with its output
		f.Close()
	}
}

func (s *streams) reopenLog() error { return s.logFile.reopen() }

// console receives the terminal that libcontainer opens inside the container.
type console struct{ parent, child *os.File }

func newConsole(p *libcontainer.Process) (*console, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair for the terminal: %w", err)
	}
	c := &console{os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console-child")}
	p.ConsoleSocket = c.child
	return c, nil
}

// receive returns the terminal's master after the process has started, or nil
// when it has not.
func (c *console) receive(startErr error) (*os.File, error) {
	defer c.close()
	c.child.Close()
	if startErr != nil {
		return nil, nil
	}
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(c.parent.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor in the message (%w)", errors.Join(err))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor in the message (%w)", errors.Join(err))
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "ptmx"), nil
}

func (c *console) close() {
	c.parent.Close()
	c.child.Close()
}

// resize sets a terminal's size.
func resize(tty *os.File, size shimproto.Size) error {
	rc, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	return errors.Join(err, serr)
}
