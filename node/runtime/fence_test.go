package runtime

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

func bootTime(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

// A shim ends its containers when nobody has renewed the time of the last contact,
// with no skiff there to tell it; and not before.
func TestFence(t *testing.T) {
	e := newEnv(t)
	file := filepath.Join(e.state, "fence.json")
	record := func(r shimproto.FenceRecord) {
		t.Helper()
		if err := shimproto.WriteFence(file, r); err != nil {
			t.Fatal(err)
		}
	}
	const allowed = 4 * time.Second
	record(shimproto.FenceRecord{Granted: bootTime(t)})
	ctx, stop := context.WithCancel(context.Background())
	var last time.Time // renewed
	var renewing sync.WaitGroup
	renewing.Go(func() { // as skiff does
		for ctx.Err() == nil {
			last = time.Now()
			if err := shimproto.WriteFence(file, shimproto.FenceRecord{Granted: bootTime(t)}); err != nil {
				t.Error(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { stop(); renewing.Wait() })
	begun := time.Now()
	always := filepath.Join(e.state, "always.json")
	if err := shimproto.WriteFence(always, shimproto.FenceRecord{Always: true}); err != nil {
		t.Fatal(err)
	}
	fenced := e.sandbox(func(c *SandboxConfig) { c.FenceFile, c.FenceAfter = file, allowed })
	free := e.sandbox()
	sole := e.sandbox(func(c *SandboxConfig) { c.FenceFile, c.FenceAfter = always, time.Second })
	const forever = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
	uids := map[string]string{} // of the pod: its container
	for _, s := range []*Sandbox{fenced, free, sole} {
		uids[s.PodUID()] = e.start(s, e.sh(forever)).ID
	}
	stubborn := e.start(fenced, e.sh("trap '' TERM; while :; do sleep 0.1; done"))
	if err := e.r.Close(); err != nil { // skiff is dead
		t.Fatal(err)
	}
	state := func(s *Sandbox, id string) shimproto.ContainerStatus {
		t.Helper()
		all, err := shimproto.ReadRecords(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.ID == id {
				return c
			}
		}
		t.Fatalf("no record of %s", id)
		return shimproto.ContainerStatus{}
	}
	e.until("the time that was allowed at first is over", func() bool { return time.Since(begun) > allowed+time.Second })
	stop()
	renewing.Wait()
	if st := state(fenced, uids[fenced.PodUID()]); st.State != Running {
		t.Fatalf("ended although its contact was renewed: %+v", st)
	}
	for _, id := range []string{uids[fenced.PodUID()], stubborn.ID} {
		e.until("the container is ended", func() bool { return state(fenced, id).State == Exited })
	}
	st := state(fenced, uids[fenced.PodUID()])
	if d := st.FinishedAt.Sub(last); d < allowed-100*time.Millisecond { // that is what clocks may differ by
		t.Errorf("ended after %v, allowed are %v", d, allowed)
	}
	if st.ExitCode != 7 || !strings.Contains(st.Message, "no contact") {
		t.Errorf("how it ended: %+v", st)
	}
	if st := state(fenced, stubborn.ID); st.Signal != int(unix.SIGKILL) {
		t.Errorf("how it ended: %+v", st)
	}
	for _, s := range []*Sandbox{free, sole} {
		if st := state(s, uids[s.PodUID()]); st.State != Running {
			t.Errorf("ended without reason: %+v", st)
		}
	}
	// skiff comes back: the sandbox can go on.
	e.open()
	all, err := e.r.Sandboxes(context.Background())
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	for _, s := range all {
		if s.PodUID() != fenced.PodUID() {
			continue
		}
		if s.Config().FenceFile != file || s.Config().FenceAfter != allowed || !s.Alive() {
			t.Errorf("adopted as %+v", s.Config())
		}
		if err := s.StartContainer(context.Background(), e.sh("echo early")); err == nil || !strings.Contains(err.Error(), "no contact with the cluster") {
			t.Errorf("started without contact: %v", err)
		}
		record(shimproto.FenceRecord{Granted: bootTime(t)})
		if got := strings.TrimSpace(e.output(s, e.sh("echo back"))); got != "back" {
			t.Errorf("output %q", got)
		}
	}
}
