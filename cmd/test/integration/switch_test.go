//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

const switchApp = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30085}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: hello, image: "skiff.local/hello:v1"}
  - {name: box, image: "skiff.test/busybox:1.36", command: ["sleep", "100000"]}
`

// TestSwitchInPlace: one server goes forward, back and forward again, meets
// programs that are no good, and is killed on trial; nothing but a session of exec notices.
func TestSwitchInPlace(t *testing.T) {
	old, next := build(t, "0.1.5", ""), build(t, "0.2.0", "")
	s, err := newServer("skiff-switch", 41, filepath.Join(t.TempDir(), "data"))
	must(t, err)
	m := &switching{server: s}
	s.Binary = filepath.Join(t.TempDir(), "skiff") // its own: it is replaced
	// A file: a pipe would break with the end of the first process.
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	s.Log = log
	t.Cleanup(func() {
		if t.Failed() {
			pods, _ := s.try("", "describe", "pod", "web")
			words, _ := os.ReadFile(log.Name())
			t.Logf("%s\nthe server's words:\n%s", pods, words)
		}
		m.stop(t)
		if err := s.remove(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	must(t, copyFile(old, s.Binary))
	must(t, s.start())
	s.apply(t, switchApp)
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/web", "--timeout=240s")
	containers := m.containers(t)
	url := "http://" + s.Host.Addr + ":30085/"
	answering(t, url)
	load := traffic.Start(traffic.Config{URL: url, Every: 10 * time.Millisecond})
	defer load.Stop()
	session := m.session(t)

	first := m.pid(t)
	began := time.Now()
	m.upgrade(t, "apply", "--binary", next, "--yes", "--allow-interruption")
	t.Logf("forward after %v", time.Since(began).Round(time.Millisecond))
	m.runs(t, next)
	if now := m.pid(t); now != first {
		t.Errorf("process %d became %d", first, now)
	}
	select {
	case err := <-session:
		if err == nil {
			t.Error("the session of exec has ended well")
		}
	case <-time.After(2 * time.Minute):
		t.Error("the session of exec has not ended")
	}

	m.upgrade(t, "rollback", "--yes")
	m.runs(t, old)
	m.upgrade(t, "apply", "--binary", next, "--yes", "--allow-interruption")
	m.runs(t, next)

	for how, why := range map[string]string{"exit": "ended before it was healthy", "hang": "was not healthy after 5s"} {
		out, err := m.try("apply", "--binary", broken(t, how), "--yes", "--allow-interruption", "--trial", "5s")
		if err == nil || !strings.Contains(out+err.Error(), why) {
			t.Errorf("%s: %v\n%s", how, err, out)
		}
		m.runs(t, next)
		m.upgrade(t, "rollback", "--yes")
	}

	// The program on trial is killed, as by the kernel without memory.
	failed := make(chan error, 1)
	go func() {
		out, err := m.try("apply", "--binary", broken(t, "hang"), "--yes", "--allow-interruption", "--trial", "60s")
		if err == nil || !strings.Contains(out+err.Error(), "ended before it was healthy") {
			failed <- fmt.Errorf("%v\n%s", err, out)
			return
		}
		failed <- nil
	}()
	before := m.pid(t)
	eventually(t, 30*time.Second, func() error { return wants(commandOf(before), "hang") })
	must(t, unix.Kill(before, unix.SIGKILL))
	if err := <-failed; err != nil {
		t.Errorf("killed on trial: %v", err)
	}
	m.runs(t, next)
	m.upgrade(t, "rollback", "--yes")

	time.Sleep(settle)
	if now := m.containers(t); now != containers {
		t.Errorf("containers are %s, were %s", now, containers)
	}
	r := load.Stop()
	t.Logf("requests: %v, slowest %v", r.Answered, r.Slowest)
	if r.Failed > 0 || r.Total() == 0 {
		t.Errorf("%d requests failed: %v", r.Failed, r.Failures)
	}
}

// switching is a server whose process changes.
type switching struct{ *server }

// pid of the process that has the data directory.
func (m *switching) pid(t *testing.T) int {
	t.Helper()
	var pid int
	eventually(t, 10*time.Second, func() error { // a process that begins writes the file anew
		b, err := os.ReadFile(filepath.Join(m.DataDir, "lock"))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err
	})
	return pid
}

// stop ends the process, which may not be the one that was started.
func (m *switching) stop(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(m.DataDir, "lock"))
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); !strings.HasPrefix(exe, m.Binary) {
		return
	}
	must(t, unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0))
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000); n != 1 {
		t.Errorf("process %d does not end: %v", pid, err)
	}
}

// runs waits until the program runs, and is in place.
func (m *switching) runs(t *testing.T, program string) {
	t.Helper()
	want, err := os.ReadFile(program)
	must(t, err)
	eventually(t, time.Minute, func() error {
		for _, f := range []string{m.Binary, fmt.Sprintf("/proc/%d/exe", m.pid(t))} {
			if is, err := os.ReadFile(f); err != nil || !bytes.Equal(is, want) {
				return fmt.Errorf("%s is not %s: %v", f, program, err)
			}
		}
		return nil
	})
}

func (m *switching) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.binary, append([]string{"upgrade", args[0], "--kubeconfig", m.Kubeconfig()}, args[1:]...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *switching) upgrade(t *testing.T, args ...string) {
	t.Helper()
	if out, err := m.try(args...); err != nil {
		t.Fatalf("skiff upgrade %v: %v\n%s", args, err, out)
	}
}

// containers of the pod, by what is new when one is.
func (m *switching) containers(t *testing.T) string {
	t.Helper()
	return m.kubectl(t, "get", "pod", "web", "-o", "jsonpath={range .status.containerStatuses[*]}{.containerID} {.restartCount} {end}")
}

// session is kubectl exec that goes on until it is cut.
func (m *switching) session(t *testing.T) <-chan error {
	t.Helper()
	k := stock(m.server)
	cmd := exec.Command(k[0], append(k[1:], "exec", "web", "-i", "-c", "box", "--", "sh", "-c", "echo up; exec cat")...)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close() })
	up := make([]byte, 3)
	if _, err := io.ReadFull(out, up); err != nil {
		t.Fatalf("exec: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended
}

// commandOf tells which program a process runs.
func commandOf(pid int) string {
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err.Error()
	}
	defer exe.Close()
	if st, err := exe.Stat(); err == nil && st.Size() > 20<<20 {
		return "skiff"
	}
	return "hang"
}

// broken builds a program that is no skiff, see cmd/test/broken.
func broken(t *testing.T, how string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), how)
	if out, err := exec.Command("go", "build", "-ldflags", "-X main.version=0.2.1 -X main.how="+how, "-o", path, "../broken").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, b, 0o755), os.Chmod(to, 0o755))
}
