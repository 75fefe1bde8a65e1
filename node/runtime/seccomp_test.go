package runtime

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterOf reads the seccomp program that a process is under.
func filterOf(t *testing.T, pid int) []byte {
	t.Helper()
	const getFilter = 0x420c // PTRACE_SECCOMP_GET_FILTER
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.PtraceDetach(pid); err != nil {
			t.Error(err)
		}
	}()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	get := func(buf unsafe.Pointer) int {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, uintptr(buf), 0, 0)
		if errno != 0 {
			t.Fatalf("read the seccomp program of process %d: %v", pid, errno)
		}
		return int(n)
	}
	b := make([]byte, 8*get(nil))
	get(unsafe.Pointer(&b[0]))
	return b
}

// TestSeccompTranslation: a profile is translated once for all containers, and
// what is loaded then is what libseccomp makes of it each time.
func TestSeccompTranslation(t *testing.T) {
	e := newEnv(t)
	dir := filepath.Join(e.state, "seccomp")
	run := func(s *Sandbox) ContainerStatus {
		c := e.container("sleep", "1000")
		c.Seccomp.Type = SeccompRuntimeDefault
		c.NoNewPrivileges = len(c.ID)%2 == 0
		e.start(s, c)
		st, _ := s.Container(c.ID)
		return st
	}
	programs := func() []string {
		list, err := filepath.Glob(filepath.Join(dir, "*.bpf"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}

	// A file in the place of the folder: nothing can be kept.
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filterOf(t, run(e.sandbox()).PID)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}

	s := e.sandbox()
	first, second := run(s), run(e.sandbox())
	if n := len(programs()); n != 1 {
		t.Fatalf("%d translations of one profile", n)
	}
	program, err := os.ReadFile(programs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(program) < 1000 || !bytes.HasSuffix(fresh, program) {
		t.Fatalf("the program of %d bytes is not the end of that which libseccomp and libcontainer make (%d bytes)", len(program), len(fresh))
	}
	for _, st := range []ContainerStatus{first, second} {
		if got := filterOf(t, st.PID); !bytes.HasSuffix(got, program) || len(got) != len(fresh) {
			t.Errorf("container %s is under a program of %d bytes, want %d", st.ID, len(got), len(fresh))
		}
		e.until("only its streams are open in the container", func() bool {
			fds, err := os.ReadDir("/proc/" + strconv.Itoa(st.PID) + "/fd")
			return err == nil && len(fds) == 3
		})
	}
	var out bytes.Buffer
	args := []string{"sh", "-c", "grep Seccomp: /proc/self/status; ls /proc/self/fd | wc -l; unshare -U true 2>&1 || echo refused"}
	if code, err := s.Exec(context.Background(), first.ID, ExecConfig{Args: args}, nil, &out, nil, nil); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	// ls itself opens the folder.
	if got := strings.Fields(out.String()); len(got) < 3 || got[1] != "2" || got[2] != "4" || got[len(got)-1] != "refused" {
		t.Errorf("an exec says %q", out.String())
	}
	// The container has its own copy: the next one translates anew.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Exec(context.Background(), first.ID, ExecConfig{Args: []string{"true"}}, nil, nil, nil, nil); err != nil || code != 0 {
		t.Error(code, err)
	}
	if got := filterOf(t, run(s).PID); !bytes.HasSuffix(got, program) {
		t.Error("another program after the translation was lost")
	}
}
