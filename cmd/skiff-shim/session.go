//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// lingerAfterExit is how long an exec's output may stay silent after its
// process ended, when something it left behind holds its streams open.
const lingerAfterExit = 500 * time.Millisecond

// session is an exec's or attach's connection, whose frames several
// goroutines write.
type session struct {
	conn net.Conn
	mu   sync.Mutex
}

func (s *session) frame(t shimproto.FrameType, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return shimproto.WriteFrame(s.conn, t, b)
}

func (s *session) exit(e shimproto.Exit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return shimproto.WriteJSON(s.conn, shimproto.FrameExit, e)
}

// input reads a client's frames until it leaves: bytes and the end of stdin,
// and terminal sizes. stdin and tty may be nil.
func input(conn net.Conn, stdin func([]byte), eof func(), tty *os.File) {
	var buf []byte
	for {
		t, b, err := shimproto.ReadFrame(conn, buf)
		if err != nil {
			return
		}
		if cap(b) > cap(buf) && cap(b) <= 32<<10 {
			buf = b
		}
		switch t {
		case shimproto.FrameStdin:
			stdin(b)
		case shimproto.FrameStdinEOF:
			eof()
		case shimproto.FrameResize:
			var size shimproto.Size
			if json.Unmarshal(b, &size) == nil && tty != nil {
				_ = resize(tty, size) // the terminal may be gone by now
			}
		}
	}
}

// exec runs a further process in a container and connects it to the client.
func (s *supervisor) exec(conn net.Conn, id string, req *shimproto.Exec) error {
	p, io, pidfd, err := s.startExec(id, req)
	if rerr := respond(conn, nil, err); err != nil || rerr != nil {
		if err == nil {
			err = rerr
			io.close()
			_ = pidfd.Signal(unix.SIGKILL)
			_ = pidfd.Wait()
			_, _ = reap(p)
			pidfd.Close()
		}
		return rerr
	}
	defer pidfd.Close()
	ses := &session{conn: conn}
	var ended atomic.Bool
	for i, f := range io.outputs {
		t := shimproto.FrameStdout
		if i == 1 {
			t = shimproto.FrameStderr
		}
		io.pumps.Go(func() {
			pump(f, func(b []byte) {
				_ = ses.frame(t, b) // when the client is gone, input below ends the process
				if ended.Load() {
					io.waitFor(lingerAfterExit)
				}
			})
		})
	}
	if !req.Stdin {
		io.closeStdin()
	}
	go func() {
		input(conn, func(b []byte) {
			io.mu.Lock()
			f := io.stdin
			io.mu.Unlock()
			if f != nil {
				_, _ = f.Write(b) // the process need not read its input
			}
		}, io.closeStdin, io.terminal())
		_ = pidfd.Signal(unix.SIGKILL) // the client left; a no-op after the process has ended
	}()

	if err := pidfd.Wait(); err != nil {
		return err
	}
	ws, err := reap(p)
	if err != nil {
		return fmt.Errorf("reap an exec: %w", err)
	}
	ended.Store(true)
	io.waitFor(lingerAfterExit)
	io.pumps.Wait()
	io.close()
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return ses.exit(shimproto.Exit{ExitCode: code})
}

func (s *supervisor) startExec(id string, req *shimproto.Exec) (pid int, st *streams, pidfd *shimproto.Pidfd, err error) {
	if req == nil || len(req.Args) == 0 {
		return 0, nil, nil, errors.New("exec: no command given")
	}
	c, err := s.get(id, true)
	if err != nil {
		return 0, nil, nil, err
	}
	lc, err := libcontainer.Load(s.runcRoot(), id)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("exec: %w", err)
	}
	sp := c.process
	sp.Args = req.Args
	sp.Env = append(append([]string(nil), sp.Env...), req.Env...)
	if req.Cwd != "" {
		sp.Cwd = req.Cwd
	}
	if req.User != nil {
		sp.User = *req.User
	}
	sp.ConsoleSize = nil
	if req.TTY {
		sp.Env = append(sp.Env, "TERM=xterm")
		if req.Size.Width > 0 && req.Size.Height > 0 {
			sp.ConsoleSize = &specs.Box{Width: uint(req.Size.Width), Height: uint(req.Size.Height)}
		}
	}
	p := newProcess(&sp)
	if p.ExtraFiles, err = c.extraFiles(); err != nil {
		return 0, nil, nil, fmt.Errorf("exec: %w", err)
	}
	defer closeAll(p.ExtraFiles)
	st, err = openStreams(streamConfig{process: p, tty: req.TTY, stdin: req.Stdin, log: s.log})
	if err != nil {
		return 0, nil, nil, err
	}
	err = lc.Run(p)
	if err := st.connected(err); err != nil {
		return 0, nil, nil, err
	}
	if pid, err = p.Pid(); err == nil {
		pidfd, err = shimproto.OpenPidfd(pid)
	}
	if err != nil {
		st.close()
		return 0, nil, nil, errors.Join(err, p.Signal(unix.SIGKILL))
	}
	return pid, st, pidfd, nil
}

// attach connects a client to a container's streams until either ends.
func (s *supervisor) attach(conn net.Conn, id string, req *shimproto.Attach) error {
	if req == nil {
		return respond(conn, nil, errors.New("attach: no streams given"))
	}
	c, err := s.get(id, true)
	if err != nil {
		return respond(conn, nil, err)
	}
	st := c.streams
	if req.Stdin && !c.status.Stdin {
		return respond(conn, nil, fmt.Errorf("container %s has no standard input (stdin: true is not set)", c.status.Name))
	}
	cl := &client{conn: conn, stdout: req.Stdout, stderr: req.Stderr}
	st.mu.Lock()
	if st.clients == nil { // it has just ended
		st.mu.Unlock()
		return respond(conn, nil, refuse(shimproto.CodeNotRunning, "container %s is not running, it has just ended", id))
	}
	err = respond(conn, nil, nil)
	st.clients[cl] = struct{}{}
	st.mu.Unlock()
	if err != nil {
		return err
	}
	end := func() {
		if st.stdinOnce {
			st.closeStdin()
		}
	}
	input(conn, func(b []byte) {
		st.mu.Lock()
		f := st.stdin
		st.mu.Unlock()
		if f != nil && req.Stdin {
			_, _ = f.Write(b) // the process need not read its input
		}
	}, end, st.terminal())
	if req.Stdin {
		end()
	}
	st.mu.Lock()
	delete(st.clients, cl)
	st.mu.Unlock()
	return io.EOF
}
