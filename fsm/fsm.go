package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/store"
)

// FSM is the state machine that Raft drives. It implements raft.BatchingFSM.
type FSM struct {
	store  *store.Store
	files  FileSource
	loaded atomic.Pointer[content] // for a restore that will come

	mu        sync.RWMutex // held while the state moves from one entry to the next
	clusterID string
	index     uint64        // of the last entry applied
	term      uint64        // of that entry
	moved     chan struct{} // closed when index moves on; nil when nobody waits
	halted    error         // nothing is applied any more, see FileSource
}

// New returns a state machine over an empty store, which only it writes.
func New(s *store.Store) *FSM { return &FSM{store: s} }

// Store is where the state can be read and watched. It stays the same when a
// snapshot is restored.
func (f *FSM) Store() *store.Store { return f.store }

// ClusterID is the cluster's name, "" before it was set.
func (f *FSM) ClusterID() string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.clusterID
}

// Applied is index and term of the last entry that took effect. Entries that
// Raft keeps to itself (no-ops, barriers) are not counted.
func (f *FSM) Applied() (index, term uint64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.index, f.term
}

// WaitApplied returns when the entry at index has taken effect, or ctx ends.
// index must be one that Applied gave, here or on another member: those that
// Raft keeps to itself may never be reached.
func (f *FSM) WaitApplied(ctx context.Context, index uint64) error {
	f.mu.RLock()
	have := f.index
	f.mu.RUnlock()
	for have < index {
		f.mu.Lock()
		if f.moved == nil {
			f.moved = make(chan struct{})
		}
		have = f.index
		moved := f.moved
		f.mu.Unlock()
		if have >= index {
			break
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for log entry %d, have %d: %w", index, have, ctx.Err())
		}
	}
	return nil
}

// Apply carries out one entry and returns a []Result with one result for each
// of its commands.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch carries out several entries and makes all their changes visible
// at once. Once a file of a Restore could not be had, the results are nil.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	contents, halted := f.contents(logs)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.halted != nil || halted != nil {
		if f.halted == nil {
			f.halted = halted
		}
		return out
	}
	f.store.Update(func(tx *store.Txn) {
		for i, l := range logs {
			if l.Type == raft.LogCommand {
				out[i] = f.apply(tx, l, contents[l.Index])
			}
		}
	})
	last := logs[len(logs)-1]
	f.move(last.Index, last.Term)
	return out
}

// contents gets what the restores among logs need; usually there are none.
func (f *FSM) contents(logs []*raft.Log) (by map[uint64]*content, err error) {
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		r := RestoreIn(l.Data)
		if r == nil {
			continue
		}
		if err := f.Halted(); err != nil {
			return nil, err
		}
		c, err := f.contentFor(l, r)
		if err != nil {
			return nil, fmt.Errorf("log entry %d: %w", l.Index, err)
		}
		if by == nil {
			by = map[uint64]*content{}
		}
		by[l.Index] = c
	}
	return by, nil
}

// move sets the position in the log and tells those who wait for it.
func (f *FSM) move(index, term uint64) {
	f.index, f.term = index, term
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
}

func (f *FSM) apply(tx *store.Txn, l *raft.Log, restored *content) []Result {
	var results []Result
	err := eachCommand(l.Data, func(c Command) {
		if c.Restore != nil {
			results = append(results, f.restore(tx, c.Restore, restored))
			return
		}
		results = append(results, f.do(tx, c))
	})
	if kv, ok := tx.Get(LevelKey); ok && err != nil { // it may say why
		err = errors.Join(err, CheckLevel(parseLevel(kv.Value)))
	}
	if err != nil {
		// Whatever it is, the other members will have applied it, or all of them
		// stop here. Going on would let this one serve other data than they do.
		panic(fmt.Errorf("fsm: log entry %d of term %d: %w", l.Index, l.Term, err))
	}
	return results
}

// do carries out one command.
func (f *FSM) do(tx *store.Txn, c Command) Result {
	if c.further != nil {
		return c.further.apply(tx)
	}
	if c.Configuration != nil {
		return f.configure(tx, c.Configuration)
	}
	var r Result
	if len(c.Ops) == 1 {
		r.Current, r.Err = doOp(tx, &c.Ops[0])
	} else {
		r.Err = tx.Atomic(func() error {
			for i := range c.Ops {
				var err error
				if r.Current, err = doOp(tx, &c.Ops[i]); err != nil {
					r.Op = i
					return err
				}
			}
			return nil
		})
	}
	r.Revision = tx.Revision()
	return r
}

// doOp copies the value: it is part of an entry that holds those of many
// others, all of which it would keep in memory.
func doOp(tx *store.Txn, o *Op) (*store.KeyValue, error) {
	if o.Type == Delete {
		return tx.Delete(o.Key, o.Expect)
	}
	return tx.Put(o.Key, bytes.Clone(o.Value), o.Expect, o.Expires)
}

func (f *FSM) configure(tx *store.Txn, c *Configuration) Result {
	r := Result{Revision: tx.Revision()}
	switch f.clusterID {
	case "":
		f.clusterID = c.ClusterID
	case c.ClusterID:
	default:
		r.Err = store.ErrExists
	}
	return r
}

// Snapshot returns the state as it is now, to be persisted later.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.Halted(); err != nil { // Raft believes that more was applied than was
		return nil, err
	}
	return f.Capture(), nil
}

// Capture returns the state as it is now. It takes no time and copies nothing.
func (f *FSM) Capture() *Snapshot {
	f.mu.RLock()
	defer f.mu.RUnlock()
	v := f.store.View()
	return &Snapshot{
		Header: Header{ClusterID: f.clusterID, Revision: v.Revision(), Index: f.index, Term: f.term, Format: AtLevel(LevelOf(v)).Snapshot},
		view:   v,
	}
}

// Restore replaces the state by that of a snapshot, after all of it has been
// read and verified: if it fails the state is what it was. Watchers that have
// not seen the snapshot's revision get store.ErrCompacted.
func (f *FSM) Restore(src io.ReadCloser) error {
	defer src.Close()
	c, h, err := f.readContent(src)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.store.Reset(c.load, h.Revision); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f.clusterID = h.ClusterID
	f.move(h.Index, h.Term)
	return nil
}

var _ raft.BatchingFSM = (*FSM)(nil)
