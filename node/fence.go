package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// Contact is what a node knows of the others when it cannot reach the API.
type Contact struct {
	// SoleVoter: this host is the cluster's only server, with no other that is
	// about to join. Nobody else can decide anything.
	SoleVoter bool
	// OthersDown: this host is a server, and every other voter is known to be
	// down, as by refused connections; looked at within the last 5 s.
	OthersDown bool
	// AliveFraction is how much of all nodes gossip sees alive, this one included
	// in both numbers. Nodes that are dead count until they are removed from the
	// cluster. Above 0.55 a leader that sees this node dead has frozen evictions.
	AliveFraction float64
}

// What the servers promise of leases (cluster/nodehealth); changes have to keep
// older servers safe.
const (
	leasePath     = "/skiff/v1/lease"
	leaseDuration = 20 * time.Second
	leaseEvery    = 5 * time.Second
	leaseTimeout  = 4 * time.Second // of one request
	leaseRetry    = 500 * time.Millisecond
	soleEvery     = 2 * time.Second // how soon a sole server notices another; one that joins waits 5 s
	mostAlive     = 0.55
)

// fence decides whether pods that must not run twice may run on this node. Its
// clock goes on while the machine sleeps.
type fence struct {
	contact func() Contact
	renew   func(ctx context.Context) ([]byte, error)
	path    string // of the record that the shims read
	changed func() // new contact after a gap
	log     *slog.Logger
	clock   func() time.Duration // since boot

	mu      sync.Mutex
	granted time.Duration // when the last request was sent that was granted; 0: never
	own     bool          // by this process
	chain   uint64        // counts gaps between grants; 0: no grant yet
	from    uint64        // revision at the first grant of the chain
	written shimproto.FenceRecord
}

// FencePath is the file in a node's state directory by which shims know how long
// their pods may run without skiff.
func FencePath(stateDir string) string { return filepath.Join(stateDir, "fence.json") }

func newFence(c Config, renew func(context.Context) ([]byte, error), changed func()) *fence {
	f := &fence{contact: c.Contact, renew: renew, path: FencePath(c.StateDir), changed: changed, log: c.Logger, clock: sinceBoot}
	f.load()
	return f
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // it has no other failure than a kernel without the clock
	}
	return time.Duration(ts.Nano())
}

// load takes over what an earlier process was granted.
func (f *fence) load() {
	r, err := shimproto.ReadFence(f.path)
	if err != nil || r.Boot != readLine(bootIDPath) {
		return // none, or of before a reboot, after which nothing runs
	}
	now := f.clock()
	f.written = r
	f.granted = min(time.Duration(r.Granted), now)
	if r.Always { // until just now: another server would have been noticed
		f.granted = now
	}
}

const bootIDPath = "/proc/sys/kernel/random/boot_id"

// run renews the lease until ctx ends.
func (f *fence) run(ctx context.Context) {
	failing := false
	for {
		pause := leaseEvery
		now := f.contact()
		if now.SoleVoter {
			f.keep(true, f.clock())
			pause = soleEvery
		} else {
			err := f.ask(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				pause = leaseRetry
				if f.excused(now) {
					f.keep(false, f.clock())
				}
				if !failing {
					f.log.Warn("no server renews this node's lease", "err", err)
				}
			} else if failing {
				f.log.Info("this node's lease is renewed again")
			}
			failing = err != nil
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ask renews the lease once. It counts from before the request was sent.
func (f *fence) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	sent := f.clock()
	body, err := f.renew(ctx)
	if err != nil {
		return err
	}
	var g struct {
		Seconds  int    `json:"seconds"`
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal(body, &g); err != nil {
		return fmt.Errorf("answer to a request for a lease: %w", err)
	}
	if time.Duration(g.Seconds)*time.Second < leaseDuration {
		return fmt.Errorf("a server grants a lease of %d s, less than %s", g.Seconds, leaseDuration)
	}
	f.mu.Lock()
	gap := f.chain == 0 || sent-f.granted > leaseDuration
	if gap {
		f.chain++
		f.from = g.Revision
	}
	f.granted, f.own = sent, true
	f.mu.Unlock()
	f.keep(false, sent)
	if gap {
		f.changed()
	}
	return nil
}

// keep records for the shims until when this host has been allowed to run
// everything.
func (f *fence) keep(always bool, granted time.Duration) {
	r := shimproto.FenceRecord{Boot: readLine(bootIDPath), Always: always, Granted: int64(granted)}
	f.mu.Lock()
	same := always && f.written.Always && f.written.Boot == r.Boot
	f.written = r
	f.mu.Unlock()
	if same {
		return
	}
	if err := shimproto.WriteFence(f.path, r); err != nil {
		f.log.Warn("recording the node's lease", "err", err)
	}
}

// excused reports whether nobody can replace pods of this node although its lease
// is over. What gossip says is believed only by a process that has had contact:
// before, it may not know who belongs to the cluster.
func (f *fence) excused(c Contact) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own && (c.OthersDown || c.AliveFraction > mostAlive)
}

// permit implements pod.Config.Permit.
func (f *fence) permit(tolerated time.Duration) pod.Permit {
	f.mu.Lock()
	left := f.granted + max(leaseDuration, tolerated) - f.clock()
	if f.granted == 0 {
		left = 0
	}
	p := pod.Permit{Run: true, For: left, Start: f.chain > 0, Chain: f.chain, Revision: f.from}
	f.mu.Unlock()
	if left > time.Second && p.Start {
		return p
	}
	c := f.contact()
	switch {
	case c.SoleVoter:
		return pod.Permit{Run: true, For: soleEvery, Start: true}
	case left > 0: // nearly over, or of an earlier process
		p.Why = "the node has had no contact with a server since skiff was started"
	case f.excused(c):
		p.For = time.Second
	default:
		p.Run, p.Start, p.For = false, false, 0
		p.Why = fmt.Sprintf("the node has had no contact with a server for more than %s", max(leaseDuration, tolerated))
		if p.Chain == 0 {
			p.Why = "the node has had no contact with a server since skiff was started"
		}
	}
	return p
}
