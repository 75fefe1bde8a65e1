//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

const (
	requestTimeout = 30 * time.Second // to receive a whole request
	writeTimeout   = 10 * time.Second // for a client that does not read
	idleAfter      = 300 * time.Millisecond
	startWait      = 5 * time.Second // for starts that are under way when somebody comes to watch
)

// supervisor is the whole shim.
type supervisor struct {
	dir      string
	cfg      shimproto.Sandbox
	log      *slog.Logger
	fence    *fence // nil: the containers may always run
	setupErr error  // why the sandbox could not be set up; told to every client

	mu         sync.Mutex
	containers map[string]*container
	watchers   map[net.Conn]struct{} // written to under mu, with a deadline
	pause      *pauseProcess

	trim *time.Timer // gives memory back when nothing happens
}

func newSupervisor(dir string) (*supervisor, error) {
	b, err := os.ReadFile(filepath.Join(dir, shimproto.ConfigName))
	if err != nil {
		return nil, fmt.Errorf("read the sandbox's configuration: %w", err)
	}
	s := &supervisor{
		dir:        dir,
		log:        slog.New(slog.NewTextHandler(os.Stderr, nil)),
		containers: map[string]*container{},
		watchers:   map[net.Conn]struct{}{},
		trim:       time.AfterFunc(idleAfter, debug.FreeOSMemory),
	}
	if err := json.Unmarshal(b, &s.cfg); err != nil {
		return nil, fmt.Errorf("read the sandbox's configuration: %w", err)
	}
	s.cfg.Client = nil
	return s, os.MkdirAll(filepath.Join(dir, shimproto.RecordsName), 0o700)
}

func (s *supervisor) serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := s.handle(conn); err != nil && !errors.Is(err, io.EOF) {
				s.log.Warn("connection", "err", err)
			}
			s.trim.Reset(idleAfter)
		}()
	}
}

// refusal is an error with a code for the client.
type refusal struct {
	code shimproto.Code
	msg  string
}

func (r refusal) Error() string { return r.msg }

func refuse(code shimproto.Code, format string, args ...any) error {
	return refusal{code, fmt.Sprintf(format, args...)}
}

func respond(conn net.Conn, st *shimproto.ContainerStatus, err error) error {
	r := shimproto.Response{Status: st}
	if err != nil {
		r.Error = err.Error()
		var ref refusal
		if errors.As(err, &ref) {
			r.Code = ref.code
		}
	}
	return shimproto.WriteJSON(conn, shimproto.FrameResponse, r)
}

// handle serves one connection: a greeting and one request.
func (s *supervisor) handle(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	var hello shimproto.Hello
	if err := shimproto.ReadJSON(conn, shimproto.FrameHello, &hello); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	me := shimproto.Hello{Version: shimproto.Version, Min: shimproto.MinVersion, Build: build, PID: os.Getpid()}
	if err := shimproto.WriteJSON(conn, shimproto.FrameHello, me); err != nil {
		return err
	}
	if err := hello.Check(); err != nil {
		return respond(conn, nil, err)
	}
	var req shimproto.Request
	if err := shimproto.ReadJSON(conn, shimproto.FrameRequest, &req); err != nil {
		return err // io.EOF: somebody only wanted to know whether we live
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if s.setupErr != nil && req.Op != shimproto.OpShutdown {
		return respond(conn, nil, refuse(shimproto.CodeSetup, "%v", s.setupErr))
	}
	return s.dispatch(conn, &req)
}

func (s *supervisor) dispatch(conn net.Conn, req *shimproto.Request) error {
	switch req.Op {
	case shimproto.OpWatch:
		return s.watch(conn)
	case shimproto.OpStart:
		st, err := s.start(conn, req.Start)
		return respond(conn, st, err)
	case shimproto.OpSignal:
		return respond(conn, nil, s.signal(req.ID, req.Signal))
	case shimproto.OpRemove:
		return respond(conn, nil, s.remove(req.ID))
	case shimproto.OpUpdate:
		return respond(conn, nil, s.update(req.ID, req.Resources))
	case shimproto.OpReopen:
		return respond(conn, nil, s.reopen(req.ID))
	case shimproto.OpExec:
		return s.exec(conn, req.ID, req.Exec)
	case shimproto.OpAttach:
		return s.attach(conn, req.ID, req.Attach)
	case shimproto.OpShutdown:
		s.shutdown()
		if err := respond(conn, nil, nil); err != nil {
			s.log.Warn("last response", "err", err)
		}
		os.Exit(0)
	}
	return respond(conn, nil, refuse(shimproto.CodeUnknownOp, "this shim (build %s) has no operation %q", build, req.Op))
}

// get finds a container. running asks for one whose process runs.
func (s *supervisor) get(id string, running bool) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, refuse(shimproto.CodeNotFound, "no such container: %s", id)
	}
	if running && c.status.State != shimproto.Running {
		return nil, refuse(shimproto.CodeNotRunning, "container %s is not running, it is %s", id, c.status.State)
	}
	return c, nil
}

// watch sends every status and then all changes, until the client leaves. What
// a client before it began to start it sees at once, not as a surprise when it
// has begun to start the same.
func (s *supervisor) watch(conn net.Conn) error {
	s.mu.Lock()
	s.awaitStarts()
	for _, c := range s.containers {
		if c.status.State != shimproto.Created {
			s.tell(conn, shimproto.Event{Status: &c.status})
		}
	}
	s.tell(conn, shimproto.Event{Synced: true})
	s.watchers[conn] = struct{}{}
	s.mu.Unlock()

	var b [1]byte
	_, err := conn.Read(b[:]) // only ever ends
	s.mu.Lock()
	delete(s.watchers, conn)
	s.mu.Unlock()
	return err
}

// awaitStarts returns when no container is being started; mu is held, but not
// meanwhile. A start that hangs is not waited for.
func (s *supervisor) awaitStarts() {
	limit := time.After(startWait)
	for {
		var next chan struct{}
		for _, c := range s.containers {
			if c.status.State == shimproto.Created {
				next = c.settled
			}
		}
		if next == nil {
			return
		}
		s.mu.Unlock()
		select {
		case <-next:
			s.mu.Lock()
		case <-limit:
			s.mu.Lock()
			return
		}
	}
}

// abandoned says that the client has left and will not read a response.
func abandoned(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || errors.Is(err, unix.ECONNRESET)
	})
	return gone || err != nil
}

// tell writes an event; a client that does not read is dropped.
func (s *supervisor) tell(conn net.Conn, ev shimproto.Event) {
	err := conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		err = shimproto.WriteJSON(conn, shimproto.FrameEvent, ev)
	}
	if err != nil {
		conn.Close() // its watch ends and forgets it
	}
}

// publish records a container's new status and tells it. mu is held.
func (s *supervisor) publish(c *container) {
	if err := shimproto.WriteRecord(s.dir, &c.status); err != nil {
		s.log.Error("record a container's status", "id", c.status.ID, "err", err)
	}
	for conn := range s.watchers {
		s.tell(conn, shimproto.Event{Status: &c.status})
	}
}

// shutdown ends every container and the shared PID namespace.
func (s *supervisor) shutdown() {
	s.mu.Lock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := s.killAndWait(c); err != nil {
				s.log.Error("end a container", "id", c.status.ID, "err", err)
			}
		})
	}
	wg.Wait()
	s.stopPause()
}
