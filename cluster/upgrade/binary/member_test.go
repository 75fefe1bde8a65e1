package binary

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// member is a skiff of these tests on a host of its own: a folder.
type member struct {
	t        *testing.T
	dir      string // data directory
	path     string // its program
	env      []string
	old, new order.Binary
	cmd      *exec.Cmd
	groups   []int
	out      *os.File
}

func newMember(t *testing.T, mode string) *member {
	t.Helper()
	root := t.TempDir()
	m := &member{t: t, dir: filepath.Join(root, "data"), path: filepath.Join(root, "bin", "skiff")}
	for _, d := range []string{filepath.Join(m.dir, "binaries"), filepath.Dir(m.path)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.env = []string{"SKIFF_TEST_STEPS=" + filepath.Join(root, "steps")}
	m.old = character{Version: "1.0.0", Mode: "healthy"}.write(t, m.path)
	next := filepath.Join(root, "next")
	m.new = character{Version: "2.0.0", Mode: mode}.write(t, next)
	if err := os.Rename(next, filepath.Join(m.dir, "binaries", m.new.SHA256)); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.out, err = os.Create(filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.powerCut()
		m.out.Close()
		if t.Failed() {
			for _, f := range []string{"out", "steps", "data/upgrade/state.json", "data/reports"} {
				b, _ := os.ReadFile(filepath.Join(root, f))
				t.Logf("%s:\n%s", f, b)
			}
		}
	})
	return m
}

// start runs what is in place, in a process group of its own.
func (m *member) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.path, "serve", m.dir)
	m.cmd.Env = append(os.Environ(), m.env...)
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.groups = append(m.groups, m.cmd.Process.Pid)
	go m.cmd.Wait() //nolint:errcheck // it is killed, most often
}

// powerCut ends member and guard.
func (m *member) powerCut() {
	for _, g := range m.groups {
		_ = unix.Kill(-g, unix.SIGKILL)
	}
	m.eventually("the end of all processes", func() error {
		if pids := m.processes(); len(pids) > 0 {
			return fmt.Errorf("%v live", pids)
		}
		return nil
	})
	m.groups = nil
}

// processes of this member that live: those of its process groups.
func (m *member) processes() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*")
	for _, l := range links {
		pid, _ := strconv.Atoi(filepath.Base(l))
		group, err := unix.Getpgid(pid)
		if err != nil || !slices.Contains(m.groups, group) {
			continue
		}
		if _, err := findProcess(pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// server is the process that has the data directory; 0 if none has.
func (m *member) server() int {
	b, _ := os.ReadFile(filepath.Join(m.dir, "lock"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if slices.Contains(m.processes(), pid) {
		return pid
	}
	return 0
}

// signal sends to the process that has the data directory.
func (m *member) signal(s unix.Signal) {
	m.t.Helper()
	m.eventually("the member that gets a signal", func() error {
		pid := m.server()
		if pid == 0 { // which kill takes for all of this process's group
			return fmt.Errorf("none lives")
		}
		return unix.Kill(pid, s)
	})
}

func (m *member) eventually(what string, check func() error) {
	m.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *member) order(id string, a order.Action, b order.Binary, trial time.Duration) {
	m.t.Helper()
	text, err := json.Marshal(order.Order{ID: id, Action: a, Binary: b, Trial: trial})
	if err == nil {
		tmp := filepath.Join(m.dir, "order.new")
		if err = os.WriteFile(tmp, text, 0o600); err == nil {
			err = os.Rename(tmp, filepath.Join(m.dir, "order.json"))
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// reports on an order, as the leader got them.
func (m *member) reports(id string) (out []order.Report) {
	b, _ := os.ReadFile(filepath.Join(m.dir, "reports"))
	for line := range strings.Lines(string(b)) {
		var r order.Report
		if json.Unmarshal([]byte(line), &r) == nil && r.Order == id {
			out = append(out, r)
		}
	}
	return out
}

// outcome waits for the last report on an order.
func (m *member) outcome(id string) (r order.Report) {
	m.t.Helper()
	m.eventually("report on order "+id, func() error {
		rs := m.reports(id)
		if len(rs) == 0 || rs[len(rs)-1].Phase == order.Working {
			return fmt.Errorf("got %v", rs)
		}
		r = rs[len(rs)-1]
		return nil
	})
	return r
}

// check is what has to be true whenever a switch is over, whatever happened: one
// whole program in place, that one runs, and runs once, and nothing else is left.
func (m *member) check(r order.Report) {
	m.t.Helper()
	want := m.old
	if r.Version == m.new.Version {
		want = m.new
	}
	m.eventually("one process", func() error {
		switch pids := m.processes(); {
		case len(pids) != 1 || m.server() != pids[0]:
			return fmt.Errorf("processes %v, the data directory is that of %d", pids, m.server())
		}
		if sum, err := Sum(fmt.Sprintf("/proc/%d/exe", m.server())); err != nil || sum != want.SHA256 {
			return fmt.Errorf("%s runs (%v), reported was version %s", sum, err, r.Version)
		}
		return nil
	})
	if sum, err := Sum(m.path); err != nil || sum != want.SHA256 {
		m.t.Errorf("in place is %s (%v), reported was version %s", sum, err, r.Version)
	}
	m.eventually("the end of the trial", func() error {
		beside, err := os.ReadDir(filepath.Dir(m.path))
		if err != nil || len(beside) != 1 {
			return fmt.Errorf("beside the program: %v, %v", beside, err)
		}
		if _, err := os.Lstat(filepath.Join(Dir(m.dir), "guard")); err == nil {
			return fmt.Errorf("the guard's name is left")
		}
		return nil
	})
	s, err := (journal{Dir(m.dir)}).read()
	if err != nil || s.Trial != nil {
		m.t.Errorf("state: %+v, %v", s, err)
	}
	if r.Phase == order.Done != (r.Error == "") {
		m.t.Errorf("report %+v", r)
	}
}
