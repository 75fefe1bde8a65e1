package raftdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// verify reads the whole log. Entries up to the snapshot may be missing: Raft
// leaves such gaps when it installs one. closed, if not nil, is how the log ended.
func (l *Log) verify(o Options, closed *mark) (c Contents, err error) {
	snapshot := o.SnapshotIndex
	err = l.guard("read", func() error {
		if c.First, err = l.bolt.FirstIndex(); err != nil {
			return err
		}
		if c.Last, err = l.bolt.LastIndex(); err != nil {
			return err
		}
		current, err := l.currentTerm()
		if err != nil {
			return err
		}
		if closed != nil {
			now, err := l.mark()
			if err == nil {
				err = closed.compare(now)
			}
			if err != nil {
				return err
			}
		}
		if c.First == 0 {
			return nil
		}
		if c.First > snapshot+1 {
			return fmt.Errorf("it begins at entry %d, but the newest snapshot in %s ends at %d", c.First, filepath.Join(filepath.Dir(l.path), "snapshots"), snapshot)
		}
		if o.SnapshotTaken && c.Last < snapshot {
			return fmt.Errorf("it ends with entry %d, and the snapshot that was taken of it with %d: it is older, or its end was lost", c.Last, snapshot)
		}
		term := uint64(0)
		for i := c.First; i <= c.Last; i++ {
			var e raft.Log
			err := l.bolt.GetLog(i, &e)
			if i <= snapshot && errors.Is(err, raft.ErrLogNotFound) {
				continue
			}
			if err == nil {
				err = unseal(i, &e)
			}
			if err != nil {
				return fmt.Errorf("entry %d of %d to %d: %w", i, c.First, c.Last, err)
			}
			if e.Term < term {
				return fmt.Errorf("entry %d of term %d follows one of term %d", i, e.Term, term)
			}
			term = e.Term
			c.Bytes += int64(len(e.Data)) + entryOverhead
		}
		if term > current {
			return fmt.Errorf("its last entry is of term %d, and its current term is %d", term, current)
		}
		l.lastTerm.Store(term)
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("%w: %s: %w", ErrDamaged, l.path, err)
	}
	return c, nil
}

// currentTerm is that of the stable store, 0 in a new one.
func (l *Log) currentTerm() (uint64, error) {
	sealed, err := l.bolt.Get([]byte(keyTerm))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	val, err := openValue([]byte(keyTerm), sealed)
	if err == nil && len(val) != 8 {
		err = fmt.Errorf("%s holds %d bytes, should be 8", keyTerm, len(val))
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(val), nil
}

// guard runs fn and returns its panics as errors: bolt asserts that its pages
// are sound, and reading a mapped file that is too short is a memory fault.
func (l *Log) guard(what string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", what, p)
		}
	}()
	return fn()
}
