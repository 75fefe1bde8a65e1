package clustertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// member is one life of a server, from its start to its stop or crash.
type member struct {
	w    *world
	host string // its name on the network
	id   string
	dir  string
	node *consensus.Node
	fsm  *fsm.FSM
	pods *storage.Resource

	// dead is set, under the world's lock, before a crash takes its picture of
	// the disk: what this member says afterwards was never said.
	dead   atomic.Bool
	slow   atomic.Int64 // nanoseconds that each step of the disk takes longer
	armed  atomic.Pointer[trap]
	cancel context.CancelFunc
	done   chan struct{} // closed when all of it has ended
	err    error         // of Run

	// What looks at it have seen.
	revision int64
	votes    bool
	joined   bool // it began without data
}

// trap is a crash that waits for a step.
type trap struct {
	step  string
	after atomic.Int64 // so many of them
	told  bool
}

// step is consensus.Config.Step.
func (m *member) step(what string) {
	if d := m.slow.Load(); d > 0 {
		if d < int64(2*time.Second) {
			m.w.meet("write to a slow disk")
		} else {
			m.w.meet("write to a hanging disk")
		}
		time.Sleep(time.Duration(d))
	}
	switch what {
	case "install:close:after":
		m.w.meet("snapshot installed")
	case "snapshot:close:after":
		m.w.meet("snapshot taken")
	}
	if t := m.armed.Load(); t != nil && t.step == what && t.after.Add(-1) == 0 {
		m.w.logf("%s reaches %s", m.host, what)
		role := "a follower"
		if m.node.IsLeader() {
			role = "a leader"
		}
		m.w.mu.Lock()
		m.w.crashes[what]++
		m.w.met["crash of "+role+" while it writes"]++
		m.w.mu.Unlock()
		m.w.crash(m, t.told)
	}
}

// start makes a life on dir.
func (w *world) start(host, id, dir string, bootstrap []consensus.Server, join []string) (*member, error) {
	l, err := w.net.Listen(host)
	if err != nil {
		return nil, err
	}
	m := &member{w: w, host: host, id: id, dir: dir, done: make(chan struct{})}
	w.mu.Lock()
	if s := w.slots[host]; s != nil && s.trap != nil {
		m.armed.Store(s.trap)
		s.trap = nil
	}
	w.mu.Unlock()
	db := store.New(store.Config{})
	m.fsm = fsm.New(db)
	m.node, err = consensus.New(consensus.Config{
		NodeID: id, DataDir: dir, Listener: l, AdvertiseAddr: address(host),
		TLS: w.tls(host, id), FSM: m.fsm, Logger: w.logger.With("host", host),
		Bootstrap: bootstrap, Join: join, Dial: w.net.Dialer(host), Step: m.step,
		SnapshotEntries: w.o.snapshotEntries, Trailing: w.o.trailing, Reserve: 64 << 10,
		Witness: host == w.witness, DeadServerGrace: w.grace, Admit: w.admit(),
	})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	log := storage.Log(m.node)
	if w.o.spoil != nil {
		log = w.o.spoil(m.node)
	}
	backend, err := storage.New(storage.Config{Store: db, Log: log, BookmarkInterval: 2 * time.Second})
	if err == nil {
		m.pods, err = backend.Resource(storage.ResourceConfig{Prefix: "/pods/", Codec: w.codec,
			NewFunc: func() runtime.Object { return &example.Pod{} }})
	}
	if err != nil {
		return nil, errors.Join(err, m.node.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	w.wg.Go(func() { _ = backend.Run(ctx) })
	w.wg.Go(func() { w.record(ctx, m, db.Watch("/", 0)) })
	w.wg.Go(func() {
		m.err = m.node.Run(ctx)
		cancel()
		close(m.done)
	})
	return m, nil
}

// stop ends a life in good order.
func (w *world) stop(m *member) {
	w.mu.Lock()
	m.dead.Store(true)
	w.mu.Unlock()
	m.cancel()
	<-m.done
	if m.err != nil {
		w.anomaly("%s ended with: %v", m.host, m.err)
	}
	w.net.SwitchOff(m.host, true)
}

// crash ends a life at once. What the disk holds at this moment is what the
// next life begins with. told: the others' connections end (the process died);
// else they hear nothing (the power went).
func (w *world) crash(m *member, told bool) {
	w.mu.Lock()
	if m.dead.Load() {
		w.mu.Unlock()
		return
	}
	m.dead.Store(true)
	w.met[map[bool]string{true: "crash of a process", false: "crash of a host"}[told]]++
	w.mu.Unlock()
	w.net.SwitchOff(m.host, told)
	next := w.newDir()
	if err := picture(m.dir, next); err != nil {
		w.anomaly("picture of %s: %v", m.dir, err)
	}
	w.mu.Lock()
	s := w.slots[m.host]
	s.dir = next
	w.mu.Unlock()
	w.wg.Go(func() {
		// Raft forgets futures that are under way when it is shut down, and their
		// waiters never end. Without a network it soon does nothing.
		time.Sleep(time.Millisecond)
		m.cancel()
	})
}

// picture copies the Raft state of a member as it is at one moment. The member
// may still be writing: it is tried again until no transaction of the log has
// ended meanwhile. What one under way has written is not reachable in the file,
// as after a real crash.
func picture(from, to string) error {
	var last error
	for range 1000 {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		before, err := head(from)
		if err != nil {
			return err
		}
		if last = os.CopyFS(to, os.DirFS(from)); last != nil {
			continue // a snapshot was renamed or removed
		}
		after, err := head(from)
		if err != nil {
			return err
		}
		if bytes.Equal(before, after) {
			return nil
		}
		last = errors.New("the log does not come to rest")
	}
	return last
}

// head is the part of bolt's file that names its last transaction.
func head(dir string) ([]byte, error) {
	f, err := os.Open(raftdir.LogPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 2*os.Getpagesize())
	n, _ := f.ReadAt(b, 0)
	return b[:n], nil
}

// fingerprint is the state at one log index.
func (m *member) fingerprint() (index uint64, revision int64, sum [32]byte, err error) {
	s := m.fsm.Capture()
	h := sha256.New()
	if err := s.Write(context.Background(), h); err != nil {
		return 0, 0, sum, err
	}
	return s.Index, s.Revision, [32]byte(h.Sum(nil)), nil
}

func (w *world) newDir() string {
	return filepath.Join(w.root, fmt.Sprintf("d%03d", w.dirs.Add(1)))
}

// pick returns a random element.
func pick[T any](r *rand.Rand, of []T) (v T) {
	if len(of) == 0 {
		return v
	}
	return of[r.IntN(len(of))]
}
