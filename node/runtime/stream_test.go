package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// buffer is a bytes.Buffer that several goroutines may use.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestLogFormat(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.sh(`echo one; echo; echo err >&2; printf 'a\nb\n'; head -c 40000 /dev/zero | tr '\0' x; echo; printf end`))
	e.wait(s, c.ID)
	b, err := os.ReadFile(filepath.Join(e.logs, c.LogPath))
	if err != nil {
		t.Fatal(err)
	}
	var stdout []string
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		ts, err := time.Parse("2006-01-02T15:04:05.000000000Z", f[0])
		if err != nil || time.Since(ts) > time.Minute {
			t.Errorf("time of %.60q: %v", line, err)
		}
		if f[1] == "stderr" {
			if f[2] != "F" || f[3] != "err" {
				t.Errorf("%q", line)
			}
			continue
		}
		text := f[3]
		if len(text) > 100 {
			text = fmt.Sprintf("%d of %s", len(text), text[:1])
		}
		stdout = append(stdout, f[2]+" "+text)
	}
	want := []string{"F one", "F ", "F a", "F b", "P 16384 of x", "P 16384 of x", "F 7232 of x", "P end"}
	if strings.Join(stdout, "|") != strings.Join(want, "|") {
		t.Errorf("%q\nwant %q", stdout, want)
	}
}

func TestLogRotation(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.sh("i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); [ $((i%20)) = 0 ] && sleep 0.01; done; exec sleep 100"))
	p := filepath.Join(e.logs, c.LogPath)
	for i := range 5 {
		time.Sleep(20 * time.Millisecond)
		if err := os.Rename(p, fmt.Sprintf("%s.%d", p, i)); err != nil {
			t.Fatal(err)
		}
		if err := s.ReopenLog(context.Background(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	var all string
	e.until("everything is logged", func() bool {
		all = ""
		for i := range 5 {
			b, err := os.ReadFile(fmt.Sprintf("%s.%d", p, i))
			if err != nil {
				t.Fatal(err)
			}
			all += string(b)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all += string(b)
		return strings.HasSuffix(all, " 399\n")
	})
	for i, line := range strings.Split(strings.TrimSpace(all), "\n") {
		if !strings.HasSuffix(line, fmt.Sprintf(" stdout F %d", i)) {
			t.Fatalf("line %d: %q", i, line)
		}
	}
}

func TestExec(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.container("sleep", "1000")
	c.Env, c.User.Name, c.WorkingDir = []string{"FROM=container"}, "app", "/tmp"
	e.start(s, c)
	ctx := context.Background()
	var out, errOut buffer
	code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"sh", "-c", "id -un; pwd; echo $FROM $MORE; echo bad >&2; cat; exit 3"}, Env: []string{"MORE=exec"}},
		strings.NewReader("from stdin\n"), &out, &errOut, nil)
	if err != nil || code != 3 || out.String() != "app\n/tmp\ncontainer exec\nfrom stdin\n" || errOut.String() != "bad\n" {
		t.Errorf("%d %v %q %q", code, err, out.String(), errOut.String())
	}
	for script, want := range map[string]int{"exit 0": 0, "exit 255": 255, "kill -9 $$": 137} {
		if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"sh", "-c", script}}, nil, nil, nil, nil); err != nil || code != want {
			t.Errorf("%s: %d %v", script, code, err)
		}
	}
	out = buffer{}
	root := User{Name: "root"}
	if _, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"id", "-u"}, User: &root, Rootfs: e.rootfs, WorkingDir: "/"}, nil, &out, nil, nil); err != nil || out.String() != "0\n" {
		t.Errorf("%q %v", out.String(), err)
	}
	if _, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"nosuch"}}, nil, nil, nil, nil); err == nil || !strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
		t.Error(err)
	}
	// Much output, and much input.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	out = buffer{}
	if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"cat"}}, bytes.NewReader(big), &out, nil, nil); err != nil || code != 0 || out.String() != string(big) {
		t.Errorf("%d %v %d bytes", code, err, len(out.String()))
	}
	// What an exec leaves in the background does not hold it up.
	t0 := time.Now()
	out = buffer{}
	if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"sh", "-c", "sleep 50 & echo started"}}, nil, &out, nil, nil); err != nil || code != 0 || out.String() != "started\n" || time.Since(t0) > 10*time.Second {
		t.Errorf("%d %v %q after %v", code, err, out.String(), time.Since(t0))
	}
	e.start(s, ContainerConfig{ID: "gone", Name: "gone", Rootfs: e.rootfs, Args: []string{"true"}})
	e.wait(s, "gone")
	if _, err := s.Exec(ctx, "gone", ExecConfig{Args: []string{"true"}}, nil, nil, nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Error("exec in a dead container:", err)
	}
}

// When the caller gives up, the process ends.
func TestExecCancelled(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.container("sleep", "1000"))
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"sleep", "500"}}, nil, nil, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	st, _ := s.Container(c.ID)
	e.until("the exec is killed", func() bool { return len(e.r.cgroups.pids(st.CgroupPath)) == 1 })
}

func TestExecTTY(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.container("sleep", "1000"))
	in, typing := io.Pipe()
	var out buffer
	sizes := make(chan Size)
	type result struct {
		code int
		err  error
	}
	done := make(chan result)
	go func() {
		code, err := s.Exec(context.Background(), c.ID, ExecConfig{Args: []string{"sh"}, TTY: true, Size: Size{80, 24}}, in, &out, nil, sizes)
		done <- result{code, err}
	}()
	say := func(text, want string) {
		t.Helper()
		if _, err := io.WriteString(typing, text); err != nil {
			t.Fatal(err)
		}
		e.until(fmt.Sprintf("%q answers %q", text, want), func() bool { return strings.Contains(out.String(), want) })
	}
	say("tty\n", "/dev/pts/")
	say("stty size\n", "24 80")
	sizes <- Size{132, 50}
	e.until("the size changes", func() bool {
		say("stty size\n", "")
		time.Sleep(10 * time.Millisecond)
		return strings.Contains(out.String(), "50 132")
	})
	say("echo $TERM\n", "xterm")
	say("sleep 100\n", "sleep 100")
	st, _ := s.Container(c.ID)
	e.until("it sleeps", func() bool {
		return slices.ContainsFunc(e.r.cgroups.pids(st.CgroupPath), func(pid int) bool { return runs(pid, "sleep", "100") })
	})
	t0 := time.Now()
	say("\x03", "^C")
	say("exit 42\n", "exit 42")
	if r := <-done; r.code != 42 || r.err != nil || time.Since(t0) > 50*time.Second {
		t.Errorf("%+v after %v, output %q", r, time.Since(t0), out.String())
	}
	typing.Close()
}

func TestAttach(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	ctx := context.Background()
	c := e.sh("while read x; do echo got $x; [ $x = err ] && echo oops >&2; [ $x = end ] && exit 6; done; exit 8")
	c.Stdin = true
	e.start(s, c)
	in, typing := io.Pipe()
	var out, errOut, second buffer
	done := make(chan error, 2)
	go func() { done <- s.Attach(ctx, c.ID, in, &out, &errOut, false, nil) }()
	if _, err := io.WriteString(typing, "hello\nerr\n"); err != nil {
		t.Fatal(err)
	}
	e.until("the container answers", func() bool { return out.String() == "got hello\ngot err\n" && errOut.String() == "oops\n" })
	// A client that leaves ends nothing; the input stays open.
	typing.Close()
	ctx2, cancel := context.WithCancel(ctx)
	go func() { done <- s.Attach(ctx2, c.ID, nil, &second, nil, false, nil) }()
	in2, typing2 := io.Pipe()
	go func() { done <- s.Attach(ctx, c.ID, in2, nil, nil, false, nil) }()
	if _, err := io.WriteString(typing2, "again\n"); err != nil {
		t.Fatal(err)
	}
	e.until("the input is still open", func() bool { return strings.HasSuffix(out.String(), "got again\n") })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := io.WriteString(typing2, "end\n"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	typing2.Close()
	if st := e.wait(s, c.ID); st.ExitCode != 6 {
		t.Errorf("%+v", st)
	}
	if !strings.Contains(e.log(c), "stdout F got again\n") {
		t.Error("attached output is not in the log")
	}
	if err := s.Attach(ctx, c.ID, nil, &out, nil, false, nil); !errors.Is(err, ErrNotRunning) {
		t.Error("attach to a dead container:", err)
	}
	if err := s.Attach(ctx, "nobody", nil, &out, nil, false, nil); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	noIn := e.start(s, e.container("sleep", "100"))
	if err := s.Attach(ctx, noIn.ID, strings.NewReader("x"), &out, nil, false, nil); err == nil || !strings.Contains(err.Error(), "no standard input") {
		t.Error(err)
	}
}

func TestStdinOnce(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.container("sh", "-c", "cat; exit 9")
	c.Stdin, c.StdinOnce = true, true
	e.start(s, c)
	var out buffer
	if err := s.Attach(context.Background(), c.ID, strings.NewReader("all there is\n"), &out, nil, false, nil); err != nil {
		t.Fatal(err)
	}
	if st := e.wait(s, c.ID); st.ExitCode != 9 || out.String() != "all there is\n" {
		t.Errorf("%+v %q", st, out.String())
	}
	// The client is killed rather than finishing: its input ends too.
	c = e.container("cat")
	c.Stdin, c.StdinOnce = true, true
	e.start(s, c)
	in, typing := io.Pipe()
	defer typing.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Attach(ctx, c.ID, in, nil, nil, false, nil) }()
	if _, err := io.WriteString(typing, "x\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	e.wait(s, c.ID)
}

func TestContainerTTY(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.container("sh")
	c.TTY, c.Stdin = true, true
	e.start(s, c)
	in, typing := io.Pipe()
	var out buffer
	sizes := make(chan Size, 1)
	sizes <- Size{100, 40}
	done := make(chan error)
	go func() { done <- s.Attach(context.Background(), c.ID, in, &out, nil, true, sizes) }()
	e.until("the terminal has its size", func() bool {
		if _, err := io.WriteString(typing, "stty size\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		return strings.Contains(out.String(), "40 100")
	})
	if _, err := io.WriteString(typing, "exit 12\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	typing.Close()
	if st := e.wait(s, c.ID); st.ExitCode != 12 {
		t.Errorf("%+v", st)
	}
	if err := s.Attach(context.Background(), c.ID, nil, &out, nil, false, nil); err == nil {
		t.Error("attach without saying that there is a terminal")
	}
}

// A flood of output is logged whole.
func TestMuchOutput(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.sh("seq 1 200000"))
	e.wait(s, c.ID)
	n := 0
	for line := range strings.Lines(e.log(c)) {
		n++
		if line != fmt.Sprintf("stdout F %d\n", n) {
			t.Fatalf("line %d: %q", n, line)
		}
	}
	if n != 200000 {
		t.Errorf("%d lines", n)
	}
}

// slowWriter takes its time, once.
type slowWriter struct {
	n     int
	pause time.Duration
}

func (w *slowWriter) Write(b []byte) (int, error) {
	<-time.After(w.pause)
	w.pause = 0
	w.n += len(b)
	return len(b), nil
}

// Who reads slowly gets all of an exec's output, also what was still on its way
// when the process ended: that may wait in a pipe, behind a full socket.
func TestExecWaitsForSlowReaders(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	c := e.start(s, e.container("sleep", "1000"))
	var wg sync.WaitGroup
	for kb := 96; kb <= 352; kb += 16 { // how much sockets hold differs
		wg.Go(func() {
			out := &slowWriter{pause: 2 * time.Second}
			args := []string{"head", "-c", fmt.Sprint(kb << 10), "/dev/zero"}
			if code, err := s.Exec(context.Background(), c.ID, ExecConfig{Args: args}, nil, out, nil, nil); err != nil || code != 0 || out.n != kb<<10 {
				t.Errorf("%d of %d bytes, exit code %d, %v", out.n, kb<<10, code, err)
			}
		})
	}
	wg.Wait()
}
