package consensus

import (
	"syscall"
	"testing"
	"time"
)

// TestQuiet: a member that nobody asks anything appends nothing and does almost
// nothing.
func TestQuiet(t *testing.T) {
	m := single(t, t.TempDir())
	m.awaitReady(t)
	m.put(t, "/a", "1", 0)
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, used := m.Stats(), cpu()
	const d = 3 * time.Second
	time.Sleep(d) // there is nothing to wait for: nothing must happen
	after := m.Stats()
	t.Logf("%.3f %% of a core", 100*float64(cpu()-used)/float64(d))
	if after.LastIndex != before.LastIndex || after.Appends.Count != before.Appends.Count || after.Term != before.Term {
		t.Errorf("a quiet member went from %+v to %+v", before, after)
	}
}
