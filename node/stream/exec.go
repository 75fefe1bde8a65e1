package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// streamOptions accepts the names of the kubelet's API (input, output, error)
// and those of the API server (stdin, stdout, stderr).
func streamOptions(r *http.Request) (*remotecommand.Options, error) {
	q := r.URL.Query()
	on := func(names ...string) bool {
		for _, n := range names {
			if v := q.Get(n); v == "1" || v == "true" {
				return true
			}
		}
		return false
	}
	o := &remotecommand.Options{Stdin: on("input", "stdin"), Stdout: on("output", "stdout"), Stderr: on("error", "stderr"), TTY: on("tty")}
	if o.TTY {
		o.Stderr = false // a terminal has one output
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return nil, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	t, ok := s.running(w, r)
	if !ok {
		return
	}
	o, err := streamOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		http.Error(w, "you must specify a command", http.StatusBadRequest)
		return
	}
	c := caller{sandbox: t.view.Sandbox, id: t.ctr.ID}
	remotecommand.ServeExec(w, r, c, t.view.Pod.Name, string(t.view.Pod.UID), t.name, command, o, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	t, ok := s.running(w, r)
	if !ok {
		return
	}
	o, err := streamOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c := caller{sandbox: t.view.Sandbox, id: t.ctr.ID, tty: t.ctr.TTY, once: t.ctr.StdinOnce}
	remotecommand.ServeAttach(w, r, c, t.view.Pod.Name, string(t.view.Pod.UID), t.name, o, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	t, ok := s.find(w, r)
	if !ok {
		return
	}
	if t.view.Sandbox == nil {
		http.Error(w, fmt.Sprintf("pod %q is not running", t.view.Pod.Name), http.StatusBadRequest)
		return
	}
	o, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c := caller{sandbox: t.view.Sandbox}
	portforward.ServePortForward(w, r, c, t.view.Pod.Name, string(t.view.Pod.UID), o, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

// caller joins a client's streams with a container.
type caller struct {
	sandbox pod.Sandbox
	id      string
	tty     bool
	once    bool // the container's stdin ends with that of its first caller
}

// ExecInContainer implements remotecommand.Executor.
func (c caller) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := c.sandbox.Exec(ctx, c.id, runtime.ExecConfig{Args: cmd, TTY: tty}, in, writer(out), writer(errs), sizes(ctx, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// writer keeps a stream that was not asked for nil.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan runtime.Size {
	if in == nil {
		return nil
	}
	out := make(chan runtime.Size)
	go func() {
		defer close(out)
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- runtime.Size{Width: s.Width, Height: s.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// PortForward implements portforward.PortForwarder: bytes both ways until
// either side is done and the other has got all.
func (c caller) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := c.sandbox.DialPort(ctx, port)
	if err != nil {
		return err // it says which port of which pod
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()
	sent, got := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		sent <- err
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		got <- err
	}()
	select {
	case err = <-got: // the container has said all it has to say
		if err != nil {
			return fmt.Errorf("copying from port %d: %w", port, err)
		}
	case err = <-sent:
		if err != nil {
			return fmt.Errorf("copying to port %d: %w", port, err)
		}
		if err = <-got; err != nil {
			return fmt.Errorf("copying from port %d: %w", port, err)
		}
	}
	return nil
}
