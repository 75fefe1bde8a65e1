package host

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Server is a skiff server on a Host.
type Server struct {
	Host    *Host
	Binary  string
	DataDir string
	// Args are added to those of `skiff server`.
	Args []string
	// Log receives the server's output.
	Log io.Writer

	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// Start starts the server and does not wait for it.
func (s *Server) Start() error {
	args := append([]string{"server", "--data-dir", s.DataDir, "--advertise-address", s.Host.Addr, "--config", os.DevNull, "--name", s.Host.Name}, s.Args...)
	// How full the machine's disk is, is not what is tested.
	for flag, value := range map[string]string{"--eviction-hard": "memory.available<100Mi", "--image-gc-high-threshold": "100", "--image-gc-low-threshold": "99"} {
		if !slices.ContainsFunc(s.Args, func(a string) bool { return a == flag || strings.HasPrefix(a, flag+"=") }) {
			args = append(args, flag, value)
		}
	}
	cmd := exec.Command(s.Binary, args...)
	cmd.Stdout, cmd.Stderr = s.Log, s.Log
	// Pods outlive the server and may hold on to its output.
	cmd.WaitDelay = time.Second
	// A Ctrl-C at the terminal is for the test or demo; it stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.Host.Start(cmd); err != nil {
		return fmt.Errorf("start skiff: %w", err)
	}
	s.cmd = cmd
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		s.err = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

// PID of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Exited is closed when the server process has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Kubeconfig of the administrator.
func (s *Server) Kubeconfig() string { return filepath.Join(s.DataDir, "admin.kubeconfig") }

// WaitAPI waits until /readyz answers 200 and returns how long that took.
func (s *Server) WaitAPI(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // only to see whether it is up
	}}
	for {
		resp, err := client.Get("https://" + s.Host.Addr + ":6443/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(start), nil
			}
			err = fmt.Errorf("readyz: %s", resp.Status)
		}
		select {
		case <-s.exited:
			return 0, fmt.Errorf("skiff server ended: %v", s.err)
		case <-ctx.Done():
			return 0, fmt.Errorf("API not ready: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// WaitNode waits until the server's own Node is Ready.
func (s *Server) WaitNode(ctx context.Context) error {
	wait := func() error {
		_, err := s.Kubectl(ctx, "wait", "--for=condition=Ready", "node/"+s.Host.Name, "--timeout=240s")
		return err
	}
	err := wait()
	for err != nil && strings.Contains(err.Error(), "not found") && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		err = wait()
	}
	return err
}

// Kubectl runs the kubectl inside the binary as the administrator and gives
// its standard output. It runs outside of the host, as a user would.
func (s *Server) Kubectl(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, exec.CommandContext(ctx, s.Binary, append([]string{"kubectl", "--kubeconfig", s.Kubeconfig()}, args...)...), "")
}

// Apply is kubectl apply of a manifest.
func (s *Server) Apply(ctx context.Context, manifest string) error {
	_, err := s.run(ctx, exec.CommandContext(ctx, s.Binary, "kubectl", "--kubeconfig", s.Kubeconfig(), "apply", "-f", "-"), manifest)
	return err
}

// Skiff runs another skiff command inside the host.
func (s *Server) Skiff(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, exec.CommandContext(ctx, s.Binary, args...), "", s.Host.Start)
}

func (s *Server) run(_ context.Context, cmd *exec.Cmd, stdin string, start ...func(*exec.Cmd) error) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	begin := cmd.Start
	if len(start) > 0 {
		begin = func() error { return start[0](cmd) }
	}
	if err := begin(); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Kill is kill -9; the pods go on.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop is what systemd does; the pods go on.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

func (s *Server) end(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("skiff server did not end a minute after %v", sig)
	}
}

// Reset stops the server and removes all that it made, its data too.
func (s *Server) Reset(ctx context.Context) error {
	errs := []error{s.Stop()}
	_, err := s.Skiff(ctx, "reset", "--yes", "--delete-data", "--data-dir", s.DataDir)
	return errors.Join(append(errs, err)...)
}
