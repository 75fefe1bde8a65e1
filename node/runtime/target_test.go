package runtime

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTargetedContainerSeesTheOthersProcesses(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	app := e.executed(s, e.start(s, e.container("sleep", "4711")))
	other := e.executed(s, e.start(s, e.container("sleep", "4712")))
	look := e.sh("ps -o pid,args; cat /proc/1/root/etc/hostname 2>&1; sleep 4713 & exit 0")
	look.TargetID = app.ID
	out := e.output(s, look)
	if !strings.Contains(out, "sleep 4711") || strings.Contains(out, "sleep 4712") {
		t.Errorf("processes that a targeted container sees:\n%s", out)
	}
	// What it leaves behind in the other's namespace ends with it.
	if out := e.output(s, func() ContainerConfig { c := e.sh("ps -o pid,args"); c.TargetID = app.ID; return c }()); strings.Contains(out, "4713") {
		t.Errorf("a process outlived its container:\n%s", out)
	}
	if st, _ := s.Container(app.ID); st.State != Running {
		t.Errorf("the target is %s", st.State)
	}
	// A shell in it sees the same.
	long := e.sh("sleep 4714")
	long.TargetID = app.ID
	e.start(s, long)
	var b strings.Builder
	if code, err := s.Exec(context.Background(), long.ID, ExecConfig{Args: []string{"ps", "-o", "args"}}, nil, &b, &b, nil); err != nil || code != 0 || !strings.Contains(b.String(), "sleep 4711") {
		t.Errorf("exec: %d, %v: %s", code, err, b.String())
	}
	// Its namespace ends with the target's first process.
	if err := s.Signal(context.Background(), app.ID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e.wait(s, app.ID)
	if st := e.wait(s, long.ID); st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	if st, _ := s.Container(other.ID); st.State != Running {
		t.Errorf("another container is %s", st.State)
	}
}

func TestTargetThatDoesNotRun(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox()
	done := e.start(s, e.sh("exit 0"))
	e.wait(s, done.ID)
	for id, want := range map[string]error{done.ID: ErrNotRunning, "c0": ErrNotFound} {
		c := e.sh("exit 0")
		c.TargetID = id
		if err := s.StartContainer(context.Background(), c); !errors.Is(err, want) {
			t.Errorf("target %s: %v", id, err)
		}
	}
}

func TestTargetIsNothingWhereThePodSharesProcesses(t *testing.T) {
	e := newEnv(t)
	s := e.sandbox(func(c *SandboxConfig) { c.ShareProcessNamespace = true })
	app := e.executed(s, e.start(s, e.container("sleep", "4711")))
	e.executed(s, e.start(s, e.container("sleep", "4712")))
	look := e.sh("ps -o args")
	look.TargetID = app.ID
	if out := e.output(s, look); !strings.Contains(out, "sleep 4711") || !strings.Contains(out, "sleep 4712") {
		t.Errorf("processes:\n%s", out)
	}
}

func TestInCgroup(t *testing.T) {
	for _, c := range []struct {
		lines string
		want  bool
	}{
		{"0::/skiff/poda/c1\n", true},
		{"0::/skiff/poda/c1/deeper\n", true},
		{"4:memory:/skiff/poda/c1\n0::/\n", true},
		{"0::/skiff/poda/c12\n", false},
		{"0::/skiff/c1x/c2\n", false},
		{"", false},
	} {
		if got := inCgroup(c.lines, "c1"); got != c.want {
			t.Errorf("%q: %v", c.lines, got)
		}
	}
}
