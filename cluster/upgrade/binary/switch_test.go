package binary

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

func TestSwitch(t *testing.T) {
	t.Parallel()
	m := newMember(t, "healthy")
	if err := os.Chmod(m.path, 0o750); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.order("1", order.Fetch, m.new, 0)
	if r := m.outcome("1"); r.Phase != order.Done || r.Version != "1.0.0" {
		t.Fatalf("fetch: %+v", r)
	}
	m.eventually("start", func() error {
		if m.server() == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	pid := m.server()
	m.order("2", order.Switch, m.new, time.Minute)
	r := m.outcome("2")
	if r.Phase != order.Done || r.Version != "2.0.0" {
		t.Fatalf("switch: %+v", r)
	}
	m.check(r)
	if m.server() != pid {
		t.Errorf("process %d became %d", pid, m.server())
	}
	if st, err := os.Stat(m.path); err != nil || st.Mode() != 0o750 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// Once more is no order; the same binary is no work.
	m.order("2", order.Switch, m.new, time.Minute)
	m.order("3", order.Switch, m.new, time.Minute)
	if r := m.outcome("3"); r.Phase != order.Done || r.Version != "2.0.0" {
		t.Errorf("switch to what runs: %+v", r)
	}
	m.order("4", order.Return, m.new, time.Minute)
	r = m.outcome("4")
	if r.Phase != order.Done || r.Version != "1.0.0" {
		t.Fatalf("return: %+v", r)
	}
	m.check(r)
	m.order("5", order.Return, m.new, time.Minute)
	if r := m.outcome("5"); r.Phase != order.Done || r.Version != "1.0.0" {
		t.Errorf("return of what does not run: %+v", r)
	}
	m.order("6", order.Action("dance"), m.new, 0)
	if r := m.outcome("6"); r.Phase != order.Failed || !strings.Contains(r.Error, "dance") {
		t.Errorf("unknown action: %+v", r)
	}
	if b, _ := os.ReadFile(filepath.Join(m.dir, "starts")); string(b) != "1.0.0\n2.0.0\n1.0.0\n" {
		t.Errorf("starts: %q", b)
	}
}

// A program that is not what was hoped for gives way to the one from before.
func TestBadPrograms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ mode, why string }{
		{"ill", "not healthy after 1s"}, {"deaf", "not healthy after 1s"},
		{"exits", "ended before it was healthy"}, {"crashes", "ended before it was healthy"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			m := newMember(t, c.mode)
			m.start()
			trial := time.Second
			if !strings.Contains(c.why, "1s") {
				trial = time.Minute
			}
			m.order("1", order.Switch, m.new, trial)
			r := m.outcome("1")
			if r.Phase != order.Returned || r.Version != "1.0.0" || !strings.Contains(r.Error, c.why) {
				t.Errorf("%+v", r)
			}
			m.check(r)
		})
	}
}

// A kill of either process, or a power cut, at each step: one program runs in the
// end, and what was reported is true.
func TestCrashAtEachStep(t *testing.T) {
	t.Parallel()
	for mode, steps := range map[string][]string{
		"healthy": {"serve/1.0.0/kept", "serve/1.0.0/prepared", "serve/1.0.0/written", "serve/1.0.0/named", "serve/1.0.0/guarded",
			"serve/1.0.0/changed", "serve/1.0.0/exec", "serve/2.0.0/begun", "serve/2.0.0/proved"},
		"exits": {"guard/1.0.0/decided", "guard/1.0.0/back", "guard/1.0.0/ended", "serve/1.0.0/begun"},
		"ill":   {"guard/1.0.0/decided", "guard/1.0.0/back", "guard/1.0.0/ended"},
	} {
		for _, s := range steps {
			for _, power := range []string{"", "+power"} {
				t.Run(mode+"/"+strings.ReplaceAll(s, "/", "-")+power, func(t *testing.T) {
					t.Parallel()
					m := newMember(t, mode)
					m.env = append(m.env, "SKIFF_TEST_CRASH="+s+power)
					m.start()
					trial := 500 * time.Millisecond
					if mode == "healthy" {
						trial = time.Minute
					}
					m.order("1", order.Switch, m.new, trial)
					m.revive()
					r := m.outcome("1")
					switch {
					case mode != "healthy" && r.Version != "1.0.0":
						t.Errorf("a bad program stays: %+v", r)
					case (r.Phase == order.Done) != (r.Version == "2.0.0"):
						t.Errorf("report %+v", r)
					case (mode == "healthy" && s == "serve/2.0.0/proved") && r.Phase != order.Done:
						t.Errorf("the trial was over: %+v", r)
					}
					m.check(r)
				})
			}
		}
	}
}

// revive waits for the crash, and starts what is in place if nothing runs any
// more, again and again, as the one who has power back does.
func (m *member) revive() {
	m.t.Helper()
	once := filepath.Join(filepath.Dir(m.dir), "crashed")
	m.eventually("crash", func() error { _, err := os.Stat(once); return err })
	dead := 0
	m.eventually("order is carried out", func() error {
		if len(m.processes()) > 0 {
			dead = 0
		} else if dead++; dead > 5 {
			dead = 0
			m.start()
		}
		if rs := m.reports("1"); len(rs) == 0 || rs[len(rs)-1].Phase == order.Working {
			return fmt.Errorf("reports %+v", rs)
		}
		return nil
	})
}

// Without a guard, as after power cuts, the starts are counted.
func TestThirdStart(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{false, true} {
		t.Run(fmt.Sprintf("BeforeStart=%v", before), func(t *testing.T) {
			t.Parallel()
			mode := "ill"
			if before {
				mode = "crashes" // it cannot count itself
			}
			m := newMember(t, mode)
			m.env = append(m.env, "SKIFF_TEST_CRASH=serve/1.0.0/exec+power")
			m.start()
			m.order("1", order.Switch, m.new, time.Hour)
			m.eventually("power cut", func() error {
				if n := len(m.processes()); n > 0 {
					return fmt.Errorf("%d processes", n)
				}
				return nil
			})
			for i := 1; ; i++ {
				if before {
					guard := exec.Command(filepath.Join(Dir(m.dir), "guard"), "before-start", Dir(m.dir))
					if out, err := guard.CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
				if sum, _ := Sum(m.path); sum == m.old.SHA256 {
					if i != maxAttempts+1 {
						t.Errorf("back at start %d", i)
					}
					break
				}
				if i > maxAttempts {
					break // it puts it back itself
				}
				m.start()
				m.eventually("start", func() error {
					s, err := (journal{Dir(m.dir)}).read()
					if !before && (err != nil || s.Trial.Attempts != i || !s.Trial.Guard.lives()) {
						return fmt.Errorf("%+v, %v", s, err)
					}
					return nil
				})
				m.powerCut()
			}
			m.start()
			r := m.outcome("1")
			if r.Phase != order.Returned || r.Version != "1.0.0" || !strings.Contains(r.Error, "started 3 times") {
				t.Errorf("%+v", r)
			}
			m.check(r)
		})
	}
}

// While nobody watches, the program on trial finds another guard.
func TestGuardKilled(t *testing.T) {
	t.Parallel()
	m := newMember(t, "ill")
	m.start()
	m.order("1", order.Switch, m.new, time.Hour)
	var first process
	m.eventually("guard", func() error {
		s, err := (journal{Dir(m.dir)}).read()
		if err != nil || s.Trial == nil || s.Trial.Attempts == 0 || !s.Trial.Guard.lives() {
			return fmt.Errorf("%+v, %v", s, err)
		}
		first = s.Trial.Guard
		return nil
	})
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.eventually("another guard", func() error {
		s, err := (journal{Dir(m.dir)}).read()
		if err != nil || s.Trial == nil || s.Trial.Guard == first {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
	m.signal(unix.SIGKILL)
	r := m.outcome("1")
	if r.Phase != order.Returned || r.Version != "1.0.0" {
		t.Errorf("%+v", r)
	}
	m.check(r)
}

// A guard whose process ends before it is told that it is watched stays at work.
func TestGuardBeginsLate(t *testing.T) {
	j := journal{t.TempDir()}
	if err := j.update(func(s *state) error { s.Trial = &trial{}; return nil }); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close() // as the process's end does
	g := &guard{journal: j}
	if g.self, err = findProcess(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := g.begin(w); err != nil {
		t.Error(err)
	}
	if mine, err := g.mine(); mine == nil || err != nil {
		t.Errorf("the trial has another guard: %v, %v", mine, err)
	}
}

// Whoever stops skiff during a trial wants it stopped; the trial goes on later.
func TestStoppedInTrial(t *testing.T) {
	t.Parallel()
	m := newMember(t, "ill")
	m.start()
	m.order("1", order.Switch, m.new, time.Hour)
	m.eventually("trial", func() error {
		b, err := os.ReadFile(filepath.Join(m.dir, "starts"))
		if err != nil || !strings.Contains(string(b), "2.0.0") {
			return fmt.Errorf("%q, %v", b, err)
		}
		return nil
	})
	m.signal(unix.SIGTERM)
	m.eventually("end", func() error {
		if pids := m.processes(); len(pids) > 0 {
			return fmt.Errorf("%v", pids)
		}
		return nil
	})
	if sum, _ := Sum(m.path); sum != m.new.SHA256 {
		t.Errorf("in place is %s", sum)
	}
	m.start()
	m.eventually("trial goes on", func() error {
		s, err := (journal{Dir(m.dir)}).read()
		if err != nil || s.Trial == nil || s.Trial.Attempts != 2 || s.Trial.Stopped || !s.Trial.Guard.lives() {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
}

// Refused switches change nothing.
func TestSwitchRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		do   func(m *member) error
		why  string
	}{
		{"another program in place", func(m *member) error {
			character{Version: "1.5.0", Mode: "healthy"}.write(m.t, m.path+"x")
			return os.Rename(m.path+"x", m.path)
		}, "holds another program than the one that runs"},
		{"none in place", func(m *member) error { return os.Remove(m.path) }, "put it back"},
		{"cannot be written", func(m *member) error {
			return unix.Mount(filepath.Dir(m.path), filepath.Dir(m.path), "", unix.MS_BIND, "")
		}, "read-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMember(t, "healthy")
			if c.why == "read-only" {
				if os.Geteuid() != 0 {
					t.Skip("mounts need root")
				}
				if err := c.do(m); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(filepath.Dir(m.path), unix.MNT_DETACH) })
				if err := unix.Mount("", filepath.Dir(m.path), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
				m.start()
			} else {
				m.start()
				m.eventually("start", func() error {
					if m.server() == 0 {
						return fmt.Errorf("none")
					}
					return nil
				})
				if err := c.do(m); err != nil {
					t.Fatal(err)
				}
			}
			m.order("1", order.Switch, m.new, time.Second)
			r := m.outcome("1")
			if r.Phase != order.Failed || r.Version != "1.0.0" || !strings.Contains(r.Error, c.why) {
				t.Errorf("%+v", r)
			}
			if s, err := (journal{Dir(m.dir)}).read(); err != nil || s.Trial != nil {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

// A state that cannot be read is kept aside; the member works.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	m := newMember(t, "healthy")
	if err := os.MkdirAll(Dir(m.dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(Dir(m.dir), "state.json"), []byte(`{"order":{"id"`), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.order("1", order.Switch, m.new, time.Minute)
	r := m.outcome("1")
	if r.Phase != order.Done {
		t.Errorf("%+v", r)
	}
	m.check(r)
	if _, err := os.Stat(filepath.Join(Dir(m.dir), "state.json.bad")); err != nil {
		t.Error(err)
	}
}

func TestGuardByHand(t *testing.T) {
	t.Parallel()
	m := newMember(t, "healthy")
	if out, err := exec.Command(m.path, "guard", m.dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "for skiff itself") {
		t.Errorf("%v: %s", err, out)
	}
	if err := BeforeStart(Dir(m.dir), slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("without a trial: %v", err)
	}
}
