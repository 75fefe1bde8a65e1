package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// Size is a terminal's size.
type Size struct{ Width, Height uint16 }

// ExecConfig describes a further process in a running container. What is not
// given is the container's own.
type ExecConfig struct {
	Args       []string
	Env        []string // added to the container's
	WorkingDir string
	User       *User // looked up in Rootfs when it holds a name or groups of the image are wanted
	Rootfs     string
	TTY        bool
	Size       Size // first size of the TTY; zero leaves it to the resize channel
}

// Exec runs a process in a container until it ends, or ctx ends (then it is
// killed). stdin, stdout, stderr and resize may be nil. An error means that
// the command could not be run or that the connection broke; else the exit
// code is the command's.
//
// A Read on stdin may still be under way when Exec returns.
func (s *Sandbox) Exec(ctx context.Context, id string, c ExecConfig, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (exitCode int, err error) {
	req := &shimproto.Exec{
		Args: c.Args, Env: c.Env, Cwd: c.WorkingDir, TTY: c.TTY, Stdin: stdin != nil,
		Size: shimproto.Size(c.Size),
	}
	if c.User != nil {
		u, err := resolveUser(c.Rootfs, *c.User)
		if err != nil {
			return 0, fmt.Errorf("exec: %w", err)
		}
		req.User = &u
	}
	return s.session(ctx, &shimproto.Request{Op: shimproto.OpExec, ID: id, Exec: req}, stdin, stdout, stderr, resize)
}

// Attach connects to a running container's streams until it exits or ctx
// ends. Output from before is not repeated. Streams that are nil are not
// connected; the end of stdin closes the container's when it is StdinOnce.
// tty must say whether the container has a terminal.
func (s *Sandbox) Attach(ctx context.Context, id string, stdin io.Reader, stdout, stderr io.Writer, tty bool, resize <-chan Size) error {
	st, ok := s.Container(id)
	if !ok {
		return fmt.Errorf("attach: %w: %s", ErrNotFound, id)
	}
	if st.TTY != tty {
		return fmt.Errorf("attach: container %s has tty: %t", st.Name, st.TTY)
	}
	req := &shimproto.Attach{Stdin: stdin != nil, Stdout: stdout != nil, Stderr: stderr != nil}
	_, err := s.session(ctx, &shimproto.Request{Op: shimproto.OpAttach, ID: id, Attach: req}, stdin, stdout, stderr, resize)
	return err
}

// session carries frames between a shim and a caller's streams.
func (s *Sandbox) session(ctx context.Context, req *shimproto.Request, stdin io.Reader, stdout, stderr io.Writer, resize <-chan Size) (int, error) {
	if !s.Alive() {
		return 0, ErrSandboxGone
	}
	conn, stop, _, err := s.open(ctx, req)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer stop()
	if _, err := response(ctx, conn); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	var wmu sync.Mutex
	if stdin != nil {
		go sendInput(conn, &wmu, stdin)
	}
	if resize != nil {
		go sendSizes(conn, &wmu, resize, ended)
	}
	defer close(ended)
	var buf []byte
	for {
		t, b, err := shimproto.ReadFrame(conn, buf)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fmt.Errorf("%w: the stream broke: %w", ErrSandboxGone, err)
		}
		buf = b[:0]
		switch t {
		case shimproto.FrameStdout:
			err = write(stdout, b)
		case shimproto.FrameStderr:
			err = write(stderr, b)
		case shimproto.FrameExit:
			var e shimproto.Exit
			if err := unmarshal(b, &e); err != nil {
				return 0, err
			}
			if e.Error != "" {
				return 0, errors.New(e.Error)
			}
			return e.ExitCode, nil
		}
		if err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

func write(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// sendInput copies stdin until it ends or the connection is closed.
func sendInput(conn net.Conn, mu *sync.Mutex, stdin io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := stdin.Read(buf)
		mu.Lock()
		var werr error
		if n > 0 {
			werr = shimproto.WriteFrame(conn, shimproto.FrameStdin, buf[:n])
		}
		if err != nil && werr == nil {
			werr = shimproto.WriteFrame(conn, shimproto.FrameStdinEOF, nil)
		}
		mu.Unlock()
		if err != nil || werr != nil {
			return
		}
	}
}

func sendSizes(conn net.Conn, mu *sync.Mutex, resize <-chan Size, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				return
			}
			mu.Lock()
			err := shimproto.WriteJSON(conn, shimproto.FrameResize, shimproto.Size(size))
			mu.Unlock()
			if err != nil {
				return
			}
		case <-ended:
			return
		}
	}
}
