//go:build integration

package host

import (
	"os/exec"
	"testing"
	"time"
)

// TestLeftover: the host of a killed run, with a process still in it, gives
// way to a new one; a host that is in use does not.
func TestLeftover(t *testing.T) {
	const name, n = "skiff-left", 249
	first, err := New(name, n)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := New(name, n); err == nil {
		t.Errorf("a host in use was given away: %v", second.Close())
	}
	cmd := exec.Command("sleep", "1000")
	if err := first.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// What the kernel does when the process that made the host is killed.
	if err := first.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.ns.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := New(name, n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the process in the host that was left is still there")
	}
}
