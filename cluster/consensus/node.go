package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Node is this member of the Raft cluster.
type Node struct {
	c         Config
	lock      *DirLock
	ownsLock  bool
	log       *raftdir.Log
	snaps     *raftdir.Snapshots
	port      *port
	batch     *batcher
	peers     *peers
	lead      leadership
	verify    verifier
	compact   compactor
	files     files
	methods   map[string]Handler
	contacts  contacts
	trans     *replicator               // nil before Run
	admission atomic.Pointer[admission] // that is not over
	stall     stall
	differs   differing
	behind    sync.WaitGroup // what nobody waits for but the end

	writes    raftdir.Latency // synced writes to the log
	slowest   atomic.Int64    // of them, see timeouts
	adapted   atomic.Int64    // slowest when Raft's timeouts were set
	reloading sync.Mutex

	admitting chan struct{}                 // of one place: taken while a server is let in, or the feature level rises
	snapshot  chan struct{}                 // of one place: taken while a snapshot is taken or installed, see install
	instance  string                        // random
	abrupt    bool                          // stop without handing over, for tests
	versionOf func([]byte) int              // fsm.CommandVersion, but for tests
	asked     atomic.Pointer[[]MemberStats] // by the leader, last

	gone    atomic.Pointer[retired]   // set by Retire
	left    context.Context           // ended by Retire
	leave   context.CancelFunc        // ends left
	raft    atomic.Pointer[raft.Raft] // nil before Run has started it
	broken  chan error                // of one place: why Run ends by itself
	ready   chan struct{}
	stopped chan struct{} // closed when Run begins to stop
	close   sync.Once
}

// New opens and verifies what the data dir holds and starts nothing. A file
// that is damaged is named in the error (ErrDamaged), with the command that
// recovers. If New succeeds, Run or Close must follow.
func New(c Config) (*Node, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	n := &Node{c: c, lock: c.Lock, broken: make(chan error, 1), ready: make(chan struct{}), stopped: make(chan struct{}), admitting: make(chan struct{}, 1), snapshot: make(chan struct{}, 1), versionOf: fsm.CommandVersion, instance: rand.Text()}
	n.left, n.leave = context.WithCancel(context.Background())
	n.stall.changed = make(chan struct{}, 1)
	if n.lock == nil {
		l, err := LockDir(c.DataDir)
		if err != nil {
			return nil, err
		}
		n.lock, n.ownsLock = l, true
	}
	if err := n.open(); err != nil {
		if n.ownsLock {
			n.lock.Unlock()
		}
		return nil, err
	}
	n.lead.init()
	n.batch = newBatcher(n)
	n.peers = newPeers(n)
	n.methods = n.ownMethods()
	n.port = newPort(&n.c, n.serveRPC)
	return n, nil
}

func (n *Node) open() error {
	if err := os.MkdirAll(raftdir.Path(n.c.DataDir), 0o700); err != nil {
		return fmt.Errorf("make raft directory: %w", err)
	}
	var err error
	if n.snaps, err = raftdir.OpenSnapshots(n.c.DataDir, newHCLogger(n.c.Logger)); err != nil {
		return n.withAdvice(err)
	}
	if err := raftdir.CheckOwner(n.c.DataDir, n.c.NodeID); err != nil {
		return n.withAdvice(err)
	}
	if err := n.verifyState(); err != nil {
		return n.withAdvice(err)
	}
	all, err := n.snaps.List()
	if err != nil {
		return fmt.Errorf("list raft snapshots: %w", err)
	}
	var snapshot, term uint64
	if len(all) > 0 {
		snapshot, term = all[0].Index, all[0].Term
	}
	if err := n.loadAdmission(); err != nil {
		return n.withAdvice(err)
	}
	log, contents, err := raftdir.OpenLog(raftdir.Options{
		DataDir: n.c.DataDir, SnapshotIndex: snapshot, SnapshotTaken: n.snaps.Taken, Reserve: n.c.Reserve,
		Step: n.c.Step, Hang: &raftdir.Hang{After: n.hangAfter, Changed: n.hung},
	})
	if err != nil {
		return n.withAdvice(err)
	}
	if contents.Stale && len(n.c.Join) > 0 {
		err := fmt.Errorf("%w: %s: its record of the last write is invalid, and what was written last may be missing", ErrDamaged, log.Path())
		return errors.Join(n.withAdvice(err), log.Close())
	}
	if contents.Stale {
		n.c.Logger.Warn("the raft log's record of its last write is invalid; if this is not because of a crash, the last write before the stop is lost", "file", log.Path())
	}
	if err := raftdir.SetOwner(n.c.DataDir, n.c.NodeID); err != nil {
		return errors.Join(err, log.Close())
	}
	n.log = log
	if err := n.files.open(n); err != nil {
		return errors.Join(err, log.Close())
	}
	n.c.FSM.SetFiles(n.files.source)
	n.compact.init(n, snapshot, contents)
	log.OnAppend, log.OnWrite, log.OnDamage = n.appended, n.wrote, n.damaged
	if snapshot > 0 {
		log.Covered(snapshot, term)
	}
	n.snaps.Step, n.snaps.Done = n.c.Step, log.Covered
	n.snaps.Check, n.snaps.Damaged = fsm.Check, n.snapshotDamaged
	n.snaps.LastIndex = func() uint64 { last, _ := log.LastIndex(); return last }
	return nil
}

// appended is called by the log after each append.
func (n *Node) appended(entries int, size int64) {
	n.compact.appended(entries, size)
	if n.trans != nil {
		n.trans.news()
	}
}

// Close releases what New opened. It is for a Node that is not run, is safe to
// call twice, and does nothing once Run has begun.
func (n *Node) Close() error {
	var err error
	n.close.Do(func() {
		close(n.stopped)
		err = errors.Join(n.port.Close(), n.release())
	})
	return err
}

func (n *Node) release() error {
	err := n.log.Close()
	if n.ownsLock {
		n.lock.Unlock()
	}
	return err
}

// Run runs the member until ctx ends, and returns when everything it started
// has ended.
func (n *Node) Run(ctx context.Context) error {
	begun := false
	n.close.Do(func() { begun = true })
	if !begun {
		return ErrStopped
	}
	var wg sync.WaitGroup
	wg.Go(n.port.serve)
	n.trans = newReplicator(n)
	var r *raft.Raft
	var err error
	if n.c.Consult != nil {
		err = n.c.Consult(ctx)
	}
	if err == nil && ctx.Err() == nil {
		r, err = n.start(n.trans)
	}
	if r != nil && err == nil {
		n.observe(r)
		n.raft.Store(r)
		n.lead.announce()
		if n.removed() != nil { // before it was stored
			n.endRaft(r)
		}
		wg.Go(func() { n.lead.run(n) })
		wg.Go(func() { n.succeed(r) })
		wg.Go(n.batch.run)
		wg.Go(n.compact.run)
		wg.Go(n.files.sweep)
		wg.Go(n.awaitReady)
		wg.Go(n.join)
		n.hasten(r)
		select {
		case <-ctx.Done():
		case err = <-n.broken:
		}
		n.handOver(r)
	}
	close(n.stopped)
	n.lead.announce()
	n.peers.close()
	if r != nil {
		n.log.Interrupt()
		shutdown := r.Shutdown()
		n.port.cutRaft(true) // else it waits for answers
		if serr := shutdown.Error(); serr != nil {
			err = errors.Join(err, fmt.Errorf("stop raft: %w", serr))
		}
	}
	err = errors.Join(err, n.trans.Close(), n.port.Close())
	wg.Wait()
	n.behind.Wait()
	return errors.Join(err, n.release())
}

// start makes the Raft instance, which restores the newest snapshot.
func (n *Node) start(trans *replicator) (*raft.Raft, error) {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.c.NodeID)
	rc.Logger = newHCLogger(n.c.Logger)
	rc.NotifyCh = n.lead.notify
	rc.HeartbeatTimeout = n.c.HeartbeatTimeout + time.Millisecond // see hasten
	rc.ElectionTimeout = n.c.HeartbeatTimeout + time.Millisecond
	rc.LeaderLeaseTimeout = n.c.HeartbeatTimeout / 2
	// Followers learn this late that an entry is committed when no other follows;
	// those who wrote or read through them wait for it. See pipeline.
	rc.CommitTimeout = time.Millisecond
	rc.SnapshotInterval = 24 * time.Hour // the compactor decides
	rc.SnapshotThreshold = 1 << 62
	rc.MaxAppendEntries = 64
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true

	exists, err := raft.HasExistingState(n.log, n.log, n.snaps)
	if err != nil {
		return nil, n.withAdvice(fmt.Errorf("read raft state: %w", err))
	}
	n.port.shutRaft(!exists && len(n.c.Join) > 0) // until it was let in, see admit
	if !exists && len(n.c.Bootstrap) > 0 {
		var config raft.Configuration
		for _, s := range n.c.Bootstrap {
			config.Servers = append(config.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Addr)})
		}
		if err := raft.BootstrapCluster(rc, n.log, n.log, n.snaps, trans, config); err != nil {
			return nil, fmt.Errorf("bootstrap the cluster: %w", err)
		}
	}
	r, err := raft.NewRaft(rc, &machine{n.c.FSM, n}, n.log, n.log, n.snaps, trans)
	if err != nil {
		if files := n.snaps.Files(); len(files) > 0 {
			if _, why := backup.Status(files[0]); why != nil {
				err = why
			}
			err = n.withAdvice(fmt.Errorf("%w: snapshot %s can't be restored: %w", ErrDamaged, filepath.Dir(files[0]), err))
		}
		return nil, fmt.Errorf("start raft: %w", err)
	}
	return r, nil
}

// hasten lets a sole voter stand for election at once. Others wait to hear from
// a leader first.
func (n *Node) hasten(r *raft.Raft) {
	if !n.soleVoter(r) {
		return
	}
	// A shorter one makes Raft look at the clock.
	n.reload(r, func(rc *raft.ReloadableConfig) { rc.HeartbeatTimeout = n.c.HeartbeatTimeout })
}

// soleVoter says whether this member alone is the quorum.
func (n *Node) soleVoter(r *raft.Raft) bool {
	voters, me := 0, false
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
			me = me || string(s.ID) == n.c.NodeID
		}
	}
	return voters == 1 && me
}

// Ready is closed when the log has been replayed and a leader is known.
func (n *Node) Ready() <-chan struct{} { return n.ready }

func (n *Node) awaitReady() {
	ctx, cancel := n.untilStopped(context.Background())
	defer cancel()
	for ctx.Err() == nil {
		if err := n.ReadIndex(ctx); err == nil {
			close(n.ready)
			return
		} else if isRemoved(err) {
			return
		} else if ctx.Err() == nil {
			n.c.Logger.Warn("waiting for a leader", "error", err)
		}
	}
}

// untilStopped is ctx, ended also when the node stops.
func (n *Node) untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-n.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Snapshot writes a snapshot that holds everything acknowledged before the call
// and is consistent at one revision.
func (n *Node) Snapshot(ctx context.Context, w io.Writer) error {
	if err := n.ReadIndex(ctx); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return n.SnapshotHere(ctx, w)
}

// SnapshotHere writes a snapshot of what this server has, which is consistent at
// one revision but may lack what others have acknowledged. It needs no quorum.
// While there are writes it takes its time, see yielding.
func (n *Node) SnapshotHere(ctx context.Context, w io.Writer) error {
	return n.c.FSM.Capture().Write(ctx, &yielding{w: w, revision: n.c.FSM.Store().Revision})
}

// machine tells the transport when entries were committed.
type machine struct {
	*fsm.FSM
	n *Node
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := m.FSM.ApplyBatch(logs)
	m.n.trans.news()
	m.n.restored(logs)
	return out
}

var _ raft.BatchingFSM = (*machine)(nil)
