package node

import (
	"context"
	"encoding/json"
	"errors"
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
	// Removed: this host is no member of the cluster any more. What it ran is
	// replaced elsewhere.
	Removed bool
	// SoleVoter: this host is the cluster's only server, with no other that is
	// about to join. Nobody else can decide anything.
	SoleVoter bool
	// OthersDown: this host is a server, and every other voter is known to be
	// down, as by refused connections; looked at within the last 5 s.
	OthersDown bool
	// AliveFraction is how much of all nodes gossip sees alive, this one included
	// in both numbers. Nodes that are dead count until they are removed from the
	// cluster. Above 0.55 a leader that sees this node dead has frozen evictions. It
	// is 0 where gossip hears nothing of the servers, and so cannot tell.
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
	firstRetry    = 100 * time.Millisecond // pods wait for the first lease
	mostAlive     = 0.55
	// excuseAfter is how long an excuse has to hold before it counts: until then
	// the leader's gossip has noticed the same, and frozen evictions.
	excuseAfter = 10 * time.Second
	lookEvery   = time.Second // at excuses
	soleEvery   = 2 * time.Second
)

var errRemoved = errors.New("the node was removed from the cluster")

// fence decides whether pods that must not run twice may run on this node. Its
// clock goes on while the machine sleeps.
type fence struct {
	contact func() Contact
	renew   func(ctx context.Context) ([]byte, error)
	path    string // of the record that the shims read
	changed func() // new contact after a gap, or none ever again
	log     *slog.Logger
	clock   func() time.Duration // since boot

	mu sync.Mutex
	// base is when this host was last known to be allowed to run everything: when
	// the last request was sent that was granted, or what an excuse made of it; 0:
	// never.
	base    time.Duration
	asked   time.Duration // when the last request was sent that was granted
	own     bool          // by this process
	excused time.Duration // since when an excuse holds; 0: none does
	chain   uint64        // counts gaps in base; 0: no grant yet
	from    uint64        // revision at the first grant of the chain
	sole    bool          // the cluster's only server
	removed bool          // from the cluster, for good
	boot    string        // ID of this boot
	written shimproto.FenceRecord
}

// FencePath is the file in a node's state directory by which shims know how long
// their pods may run without skiff.
func FencePath(stateDir string) string { return filepath.Join(stateDir, "fence.json") }

func newFence(c Config, renew func(context.Context) ([]byte, error), changed func()) *fence {
	f := &fence{contact: c.Contact, renew: renew, path: FencePath(c.StateDir), changed: changed, log: c.Logger, clock: sinceBoot, boot: readLine(bootIDPath)}
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
	if err != nil || r.Boot != f.boot {
		return // none, or of before a reboot, after which nothing runs
	}
	now := f.clock()
	f.written = r
	f.base = min(time.Duration(r.Granted), now)
	if r.Always { // until just now: another server would have been noticed
		f.base = now
	}
}

const bootIDPath = "/proc/sys/kernel/random/boot_id"

// run renews the lease, and looks for excuses while it is not renewed, until ctx
// ends.
func (f *fence) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for pause(ctx, f.look()) {
		}
	})
	failing := false
	for {
		next, err := leaseEvery, f.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if next = leaseRetry; !f.had() {
				next = firstRetry
			}
			if !failing {
				f.log.Warn("no server renews this node's lease", "err", err)
			}
		case failing:
			f.log.Info("this node's lease is renewed again")
		}
		failing = err != nil
		if !pause(ctx, next) {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (f *fence) had() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own
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
	if f.removed { // it was granted before
		f.mu.Unlock()
		return errRemoved
	}
	gap := f.chain == 0 || sent-f.base > leaseDuration
	if gap {
		f.chain++
		f.from = g.Revision
	}
	f.asked, f.own, f.excused = sent, true, 0
	f.base = max(f.base, sent)
	f.mu.Unlock()
	f.record()
	if gap {
		f.changed()
	}
	return nil
}

// look lets an excuse count as contact, and returns when to look again. It only
// goes on with what the host was allowed until then: once that is over for the
// pods that tolerate least, nothing but a new lease helps. What gossip says is
// believed only by a process that has had contact: before, it may not know who
// belongs to the cluster.
func (f *fence) look() time.Duration {
	now, c := f.clock(), f.contact()
	f.mu.Lock()
	news := c.Removed && !f.removed
	defer func() {
		f.mu.Unlock()
		f.record()
		if news {
			f.changed()
		}
	}()
	if f.removed = f.removed || c.Removed; f.removed {
		f.base, f.sole = 0, false
		return lookEvery
	}
	f.sole = c.SoleVoter
	if c.SoleVoter {
		f.base = now
		return soleEvery
	}
	if fresh := f.asked + 2*leaseEvery - now; f.own && fresh > 0 {
		f.excused = 0
		return fresh
	}
	switch {
	case !f.own || !c.OthersDown && c.AliveFraction <= mostAlive:
		f.excused = 0
	case f.excused == 0:
		f.excused = now
	case now-f.excused >= excuseAfter && now-f.base <= leaseDuration:
		f.base = max(f.base, now-excuseAfter)
	}
	return lookEvery
}

// record tells the shims.
func (f *fence) record() {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := shimproto.FenceRecord{Boot: f.boot, Always: f.sole, Granted: int64(f.base)}
	if r == f.written || r.Always && f.written.Always {
		return
	}
	if err := shimproto.WriteFence(f.path, r); err != nil {
		f.log.Warn("recording the node's lease", "err", err)
		return
	}
	f.written = r
}

// permit implements pod.Config.Permit.
func (f *fence) permit(tolerated time.Duration) pod.Permit {
	f.mu.Lock()
	defer f.mu.Unlock()
	allowed := max(leaseDuration, tolerated)
	left := f.base + allowed - f.clock()
	if f.base == 0 {
		left = 0
	}
	p := pod.Permit{Chain: f.chain, Revision: f.from}
	if left > 0 {
		p.Run, p.For, p.Start = true, left, f.chain > 0
	} else {
		p.Why = fmt.Sprintf("the node has had no contact with a server for more than %s", allowed)
	}
	switch {
	case f.removed:
		p.Why = errRemoved.Error()
	case f.chain == 0:
		p.Why = "the node has had no contact with a server since skiff was started"
	}
	return p
}
