package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// answerTimeout bounds the first answer of a shim, which does nothing to give it.
const answerTimeout = 10 * time.Second

// maxSocketPath is what fits into a sockaddr_un.
const maxSocketPath = 107

// protocolError means that a living shim cannot be talked to.
type protocolError struct{ err error }

func (e *protocolError) Error() string { return e.err.Error() }
func (e *protocolError) Unwrap() error { return e.err }

// socketAddr is a path of the shim's socket that is short enough; release must
// be called when it is no longer needed.
func (s *Sandbox) socketAddr() (addr string, release func(), err error) {
	p := filepath.Join(s.dir, shimproto.SocketName)
	if len(p) <= maxSocketPath {
		return p, func() {}, nil
	}
	fd, err := unix.Open(s.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", s.dir, err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + shimproto.SocketName, func() { unix.Close(fd) }, nil
}

// open connects to the shim, greets it and sends a request. The connection is
// closed when ctx ends; stop ends that.
func (s *Sandbox) open(ctx context.Context, req *shimproto.Request) (conn net.Conn, stop func() bool, hello shimproto.Hello, err error) {
	addr, release, err := s.socketAddr()
	if err != nil {
		return nil, nil, hello, err
	}
	var d net.Dialer
	conn, err = d.DialContext(ctx, "unix", addr)
	release()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			err = ErrSandboxGone
		}
		return nil, nil, hello, err
	}
	stop = context.AfterFunc(ctx, func() { conn.Close() })
	if hello, err = greet(conn, req); err != nil {
		stop()
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, hello, err
	}
	return conn, stop, hello, nil
}

// greet sends greeting and request, and awaits the greeting's answer.
func greet(conn net.Conn, req *shimproto.Request) (hello shimproto.Hello, err error) {
	me := shimproto.Hello{Version: shimproto.Version, Min: shimproto.MinVersion, PID: os.Getpid()}
	if err := shimproto.WriteJSON(conn, shimproto.FrameHello, me); err != nil {
		return hello, fmt.Errorf("%w: %w", ErrSandboxGone, err)
	}
	if err := shimproto.WriteJSON(conn, shimproto.FrameRequest, req); err != nil {
		return hello, fmt.Errorf("send %s to the shim: %w", req.Op, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return hello, err
	}
	if err := shimproto.ReadJSON(conn, shimproto.FrameHello, &hello); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
			return hello, fmt.Errorf("%w: %w", ErrSandboxGone, err)
		}
		return hello, &protocolError{fmt.Errorf("the shim does not answer: %w", err)}
	}
	if err := hello.Check(); err != nil {
		return hello, &protocolError{err}
	}
	return hello, conn.SetReadDeadline(time.Time{})
}

// call makes a request that has one response.
func (s *Sandbox) call(ctx context.Context, req *shimproto.Request) (*shimproto.Response, error) {
	if !s.Alive() {
		return nil, ErrSandboxGone
	}
	conn, stop, _, err := s.open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer stop()
	return response(ctx, conn)
}

func response(ctx context.Context, conn net.Conn) (*shimproto.Response, error) {
	var res shimproto.Response
	if err := shimproto.ReadJSON(conn, shimproto.FrameResponse, &res); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil, fmt.Errorf("%w: it ended before it answered", ErrSandboxGone)
		}
		return nil, fmt.Errorf("read the shim's response: %w", err)
	}
	return &res, responseError(&res)
}

func responseError(res *shimproto.Response) error {
	if res.Error == "" {
		return nil
	}
	err := &shimError{msg: res.Error}
	switch res.Code {
	case shimproto.CodeNotFound:
		err.is = ErrNotFound
	case shimproto.CodeNotRunning:
		err.is = ErrNotRunning
	case shimproto.CodeExists:
		err.is = ErrExists
	}
	return err
}

// shimError is a shim's own wording of a failure.
type shimError struct {
	msg string
	is  error
}

func (e *shimError) Error() string { return e.msg }
func (e *shimError) Unwrap() error { return e.is }

// connect opens the watch through which the sandbox learns of changes, and
// returns when everything known has been received.
func (s *Sandbox) connect(ctx context.Context) error {
	before := s.Containers()
	conn, stop, hello, err := s.open(ctx, &shimproto.Request{Op: shimproto.OpWatch})
	if err != nil {
		return err
	}
	if s.pidfd == nil {
		s.pid = hello.PID
		if s.pidfd, err = shimproto.OpenPidfd(hello.PID); err != nil {
			stop()
			conn.Close()
			return fmt.Errorf("%w: %w", ErrSandboxGone, err)
		}
	}
	present := map[string]bool{}
	for {
		ev, err := readEvent(conn)
		if err != nil {
			stop()
			conn.Close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		if ev.Synced {
			break
		}
		s.apply(ev)
		if ev.Status != nil {
			present[ev.Status.ID] = true
		}
	}
	if !stop() {
		conn.Close()
		return ctx.Err()
	}
	s.mu.Lock()
	left := s.left
	if !left {
		s.watch = conn
	}
	s.mu.Unlock()
	if left {
		conn.Close()
		return net.ErrClosed
	}
	for _, c := range before {
		if !present[c.ID] { // removed while we did not watch
			s.forget(c.ID)
		}
	}
	go s.follow(conn)
	return nil
}

func readEvent(conn net.Conn) (*shimproto.Event, error) {
	t, b, err := shimproto.ReadFrame(conn, nil)
	if err != nil {
		return nil, err
	}
	switch t {
	case shimproto.FrameEvent:
		var ev shimproto.Event
		return &ev, unmarshal(b, &ev)
	case shimproto.FrameResponse:
		var res shimproto.Response
		if err := unmarshal(b, &res); err != nil {
			return nil, err
		}
		return nil, responseError(&res)
	}
	return nil, fmt.Errorf("the shim sent a frame of type %d where an event was expected", t)
}

// follow applies events until the shim is gone, or the Runtime closes.
func (s *Sandbox) follow(conn net.Conn) {
	for {
		ev, err := readEvent(conn)
		if err == nil {
			s.apply(ev)
			continue
		}
		conn.Close()
		s.mu.Lock()
		closed := s.watch != conn // disconnect took it
		s.watch = nil
		s.mu.Unlock()
		if closed {
			return
		}
		if !s.reconnect() {
			s.lost()
		}
		return
	}
}

// reconnectEvery is how often a shim is tried that lives and cannot be reached.
const reconnectEvery = time.Second

// reconnect watches a shim again that lives: a stall may have made it drop us. It
// is false when the shim has ended.
func (s *Sandbox) reconnect() bool {
	ended := make(chan error, 1)
	go func() { ended <- s.pidfd.Wait() }()
	for told := false; ; {
		select {
		case err := <-ended:
			return err != nil // it was left alone by disconnect
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
		err := s.connect(ctx)
		cancel()
		if err == nil {
			return true // connect started another follow
		}
		if !told && !errors.Is(err, ErrSandboxGone) { // else it is just ending
			told = true
			s.r.log.Warn("lost the connection to a shim", "pod", s.cfg.PodUID, "err", err)
		}
		select {
		case err := <-ended:
			return err != nil
		case <-time.After(reconnectEvery):
		}
	}
}

// disconnect ends the watch and leaves the shim alone.
func (s *Sandbox) disconnect() {
	s.mu.Lock()
	conn := s.watch
	s.watch, s.left = nil, true
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	if s.pidfd != nil {
		s.pidfd.Close()
	}
}

func (s *Sandbox) apply(ev *shimproto.Event) {
	if ev.Status != nil {
		s.learn(*ev.Status)
	}
	if ev.Removed != "" {
		s.forget(ev.Removed)
	}
}

var stateRank = map[ContainerState]int{Created: 1, Running: 2, Exited: 3}

// learn takes in a status. It may arrive twice, and late.
func (s *Sandbox) learn(st ContainerStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.known[st.ID]; ok && stateRank[have.State] >= stateRank[st.State] {
		return
	}
	s.known[st.ID] = st
	switch st.State {
	case Running:
		s.emit(Event{Type: ContainerStarted, Container: st})
	case Exited:
		s.emit(Event{Type: ContainerExited, Container: st})
	}
}

func (s *Sandbox) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.known[id]; ok {
		delete(s.known, id)
		s.emit(Event{Type: ContainerRemoved, Container: st})
	}
}

// lost is called when the shim is gone: what it recorded is the last word, and
// whatever it left running is ended, since nobody can supervise it.
func (s *Sandbox) lost() {
	recs, err := shimproto.ReadRecords(s.dir)
	if err != nil {
		s.r.log.Error("read the records of a dead shim", "pod", s.cfg.PodUID, "err", err)
	}
	for _, st := range recs {
		s.learn(st)
	}
	if err := s.r.cgroups.kill(s.cgroup, killTimeout); err != nil {
		s.r.log.Error("end the containers of a dead shim", "pod", s.cfg.PodUID, "err", err)
	}
	for _, st := range s.Containers() {
		if st.State == Exited {
			continue
		}
		st.State, st.PID = Exited, 0
		st.FinishedAt = time.Now()
		st.ExitCode, st.Signal = exitCodeLost, int(unix.SIGKILL)
		st.Message = "The pod's supervisor ended, so the container was killed; its own exit code is not known"
		if err := shimproto.WriteRecord(s.dir, &st); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.r.log.Error("record the end of a container", "pod", s.cfg.PodUID, "err", err)
		}
		s.learn(st)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	s.emit(Event{Type: SandboxGone})
	close(s.done)
	for sub := range s.subs {
		sub.end()
	}
	s.subs = nil
}
