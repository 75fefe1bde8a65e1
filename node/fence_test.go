package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// place is a host as its fence sees it.
type place struct {
	mu      sync.Mutex
	now     time.Duration
	contact Contact
	answer  string // of the servers; "" is none
	changes int
	dir     string
}

func (p *place) fence() *fence {
	f := newFence(Config{StateDir: p.dir, Logger: slog.New(slog.DiscardHandler), Contact: func() Contact {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.contact
	}}, func(context.Context) ([]byte, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.now += time.Second // an answer takes its time; it counts from before
		if p.answer == "" {
			return nil, errors.New("no server")
		}
		return []byte(p.answer), nil
	}, func() { p.mu.Lock(); p.changes++; p.mu.Unlock() })
	f.clock = func() time.Duration { p.mu.Lock(); defer p.mu.Unlock(); return p.now }
	f.base, f.written = 0, shimproto.FenceRecord{}
	f.load()
	return f
}

func grantAt(revision int) string { return fmt.Sprintf(`{"seconds":20,"revision":%d}`, revision) }

func TestFence(t *testing.T) {
	p := &place{now: 1000 * time.Second, dir: t.TempDir()}
	f := p.fence()
	may := func(what string, tolerated time.Duration, run, start bool) {
		t.Helper()
		if got := f.permit(tolerated); got.Run != run || got.Start != start || !run && got.Why == "" {
			t.Errorf("%s: %+v", what, got)
		}
	}
	may("before any contact", 0, false, false)
	p.contact = Contact{AliveFraction: 1, OthersDown: true}
	may("believes what it cannot know yet", time.Hour, false, false)
	f.look()
	p.now += time.Minute
	f.look()
	may("gossip of a process that never had contact", time.Hour, false, false)
	p.contact = Contact{}

	p.answer = grantAt(7)
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.permit(0); !got.Run || !got.Start || got.Chain != 1 || got.Revision != 7 || got.For != 19*time.Second {
		t.Errorf("with a lease: %+v", got)
	}
	p.now += 15 * time.Second
	p.answer = grantAt(9)
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.permit(0); got.Chain != 1 || got.Revision != 7 {
		t.Errorf("renewed in time: %+v", got)
	}
	p.now += 18500 * time.Millisecond
	may("half a second left", 0, true, true)
	p.now += 600 * time.Millisecond
	may("over", 0, false, false)
	may("tolerates more", time.Minute, true, true)
	p.contact = Contact{AliveFraction: 1}
	for range 30 {
		f.look()
		p.now += time.Second
	}
	may("an excuse that comes too late", 0, false, false)
	p.contact = Contact{}
	p.now += 11 * time.Second
	may("over for all", time.Minute, false, false)
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.permit(0); got.Chain != 2 || got.Revision != 9 || p.changes != 2 {
		t.Errorf("after a gap: %+v, told %d times", got, p.changes)
	}

	// Another process on the same host may go on, but start nothing yet.
	f = p.fence()
	may("adopted", 0, true, false)
	p.now += 30 * time.Second
	may("adopted too late", 0, false, false)

	for answer, want := range map[string]string{"": "no server", "nonsense": "answer to a request for a lease", `{"seconds":3}`: "grants a lease of 3 s, less than 20s"} {
		p.answer = answer
		if err := f.ask(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", answer, err)
		}
	}
	may("refused", 0, false, false)
}

func TestFenceRecord(t *testing.T) {
	p := &place{now: 1000 * time.Second, dir: t.TempDir(), answer: grantAt(1)}
	f := p.fence()
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := shimproto.ReadFence(FencePath(p.dir))
	if err != nil || r.Granted != int64(1000*time.Second) || r.Always || r.Boot == "" {
		t.Errorf("record %+v, %v", r, err)
	}
	// Of before a reboot it says nothing.
	r.Boot = "another"
	if err := shimproto.WriteFence(FencePath(p.dir), r); err != nil {
		t.Fatal(err)
	}
	if got := p.fence().permit(time.Hour); got.Run {
		t.Errorf("runs by a record of before a reboot: %+v", got)
	}
	// The only server needs no contact, and a restart of it neither.
	p.contact = Contact{SoleVoter: true}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.run(ctx); close(done) }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if r, err = shimproto.ReadFence(FencePath(p.dir)); err == nil && r.Always {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("record %+v, %v", r, err)
		}
	}
	cancel()
	<-done
	p.mu.Lock()
	p.contact = Contact{}
	p.now += time.Hour
	p.mu.Unlock()
	if got := p.fence().permit(0); !got.Run || got.Start {
		t.Errorf("restarted just when it is the only server no more: %+v", got)
	}
	if err := os.WriteFile(FencePath(p.dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := p.fence().permit(0); got.Run {
		t.Errorf("runs by a broken record: %+v", got)
	}
	if filepath.Base(FencePath("/x")) != "fence.json" {
		t.Error("shims of older versions look for fence.json")
	}
}

// An excuse that begins in time lets a host go on, some seconds behind; shims hear
// of it, and when it ends the time runs on from there.
func TestExcuse(t *testing.T) {
	for _, tc := range []struct {
		name string
		c    Contact
		runs bool
	}{
		{"none", Contact{}, false},
		{"half of the nodes are alive", Contact{AliveFraction: 0.55}, false},
		{"most of the nodes are alive", Contact{AliveFraction: 0.56}, true},
		{"all other servers are down", Contact{OthersDown: true}, true},
		{"the only server", Contact{SoleVoter: true}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &place{now: 1000 * time.Second, dir: t.TempDir(), answer: grantAt(1)}
			f := p.fence()
			if err := f.ask(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.contact = tc.c
			for range 120 {
				p.now += time.Second
				f.look()
			}
			if got := f.permit(0); got.Run != tc.runs || got.Start != tc.runs || got.Chain != 1 {
				t.Errorf("after two minutes: %+v", got)
			}
			r, err := shimproto.ReadFence(FencePath(p.dir))
			if err != nil || r.Always != tc.c.SoleVoter {
				t.Errorf("record %+v, %v", r, err)
			}
			if got := time.Duration(r.Granted)+leaseDuration > p.now; got != tc.runs && !r.Always {
				t.Errorf("shims go on: %v", got)
			}
			p.contact = Contact{}
			for range 22 {
				p.now += time.Second
				f.look()
			}
			if got := f.permit(0); got.Run {
				t.Errorf("after its end: %+v", got)
			}
			if err := f.ask(t.Context()); err != nil || f.permit(0).Chain != 2 {
				t.Errorf("contact after a gap: %+v, %v", f.permit(0), err)
			}
		})
	}
}

// A node that was removed stops at once what is replaced elsewhere, whatever it had
// been granted and whoever it still sees, and so do its shims.
func TestRemovedNode(t *testing.T) {
	p := &place{now: 1000 * time.Second, dir: t.TempDir(), answer: grantAt(1)}
	f := p.fence()
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.contact = Contact{Removed: true, AliveFraction: 1, SoleVoter: true}
	for range 30 {
		f.look()
		p.now += time.Second
	}
	check := func(what string) {
		t.Helper()
		if got := f.permit(time.Hour); got.Run || got.Start || !strings.Contains(got.Why, "removed from the cluster") {
			t.Errorf("%s: %+v", what, got)
		}
		if r, err := shimproto.ReadFence(FencePath(p.dir)); err != nil || r.Granted != 0 || r.Always {
			t.Errorf("%s: record %+v, %v", what, r, err)
		}
	}
	check("removed")
	if p.changes != 2 {
		t.Errorf("told %d times, want once for the lease and once for its end", p.changes)
	}
	if err := f.ask(t.Context()); err == nil {
		t.Error("a grant that was under way counts")
	}
	check("after a grant")
}

// The same in the loop.
func TestExcuseReachesShims(t *testing.T) {
	p := &place{now: 1000 * time.Second, dir: t.TempDir(), answer: grantAt(1)}
	f := p.fence()
	if err := f.ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.answer, p.contact = "", Contact{AliveFraction: 0.9}
	p.now += 14 * time.Second
	f.look()
	f.excused -= excuseAfter + time.Second
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.run(ctx); close(done) }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r, err := shimproto.ReadFence(FencePath(p.dir))
		if err == nil && r.Granted > int64(1005*time.Second) && !r.Always {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("record %+v, %v", r, err)
		}
	}
	cancel()
	<-done
}
