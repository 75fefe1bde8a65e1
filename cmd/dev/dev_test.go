package dev

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPlaceOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	a, err := placeOf(filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := placeOf(filepath.Join(link, "c"))
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("one folder, two clusters: %v and %v", a, b)
	}
	if c, err := placeOf(filepath.Join(dir, "d")); err != nil || c.id == a.id {
		t.Errorf("two folders, one cluster: %v, %v", c, err)
	}
	if n := len(a.uplink()); n >= unix.IFNAMSIZ {
		t.Errorf("the link's name %s has %d letters", a.uplink(), n)
	}
}

func TestFree(t *testing.T) {
	t.Parallel()
	used := []netip.Prefix{netip.MustParsePrefix("10.190.3.0/24"), netip.MustParsePrefix("10.190.64.0/18"), netip.MustParsePrefix("192.168.0.0/16")}
	for _, tc := range []struct {
		subnet string
		ok     bool
	}{{"10.190.0.0/24", true}, {"10.190.3.0/24", false}, {"10.190.100.0/24", false}, {"10.190.128.0/24", true}, {"192.168.7.0/24", false}} {
		if err := free(netip.MustParsePrefix(tc.subnet), used); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.subnet, err)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the first thing that is checked is root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Dir: "x", Binary: self, Servers: 1, PlainDisks: true}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Servers = 0 }, "at least one"},
		{func(c *Config) { c.Agents = -1 }, "negative"},
		{func(c *Config) { c.Agents = 250 }, "at most"},
		{func(c *Config) { c.DiskSize = 1 << 20 }, "too small"},
		{func(c *Config) { c.Subnet = netip.MustParsePrefix("10.0.0.0/8") }, "/24"},
		{func(c *Config) { c.Binary = "/nowhere" }, "/nowhere"},
		{func(c *Config) { c.ImageDir = self }, "no folder"},
	} {
		c := good
		tc.change(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", c, err, tc.want)
		}
	}
}

func TestNewState(t *testing.T) {
	t.Parallel()
	p, err := placeOf(filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.load(); !errors.Is(err, ErrNotUp) {
		t.Errorf("load without a cluster: %v", err)
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.file("precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.newState(Config{Servers: 1}); err == nil || !strings.Contains(err.Error(), "precious") {
		t.Errorf("a folder with something else in it: %v", err)
	}
}

// TestProcess: a number that another process has now is not signalled.
func TestProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	proc, _, err := findProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if st := proc.state(); st == 0 {
		t.Error("a living process is dead")
	}
	other := proc
	other.Start--
	if st := other.state(); st != 0 {
		t.Errorf("a process that started at another time is in state %c", st)
	}
	if err := other.signal(unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		t.Errorf("it was signalled: %v", err)
	}
	if err := proc.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); proc.state() != 'T'; {
		if time.Now().After(deadline) {
			t.Fatalf("state %c after SIGSTOP", proc.state())
		}
	}
	if err := proc.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := proc.wait(10 * time.Second); err != nil { // a zombie has ended
		t.Error(err)
	}
	_ = cmd.Wait()
	if err := (process{}).signal(unix.SIGKILL); err == nil {
		t.Error("no process was signalled")
	}
}

// TestLock: one command at a time, and no file is left.
func TestLock(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root for " + runDir)
	}
	p, err := placeOf(filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	inside := make(chan struct{}, 1)
	done := make(chan error, 8)
	for range 8 {
		go func() {
			for range 20 {
				unlock, err := p.lock(t.Context())
				if err != nil {
					done <- err
					return
				}
				select {
				case inside <- struct{}{}:
				default:
					done <- errors.New("two have the lock")
					return
				}
				<-inside
				unlock()
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(runDir, p.id+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
