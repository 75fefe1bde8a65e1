package raftdir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Options for OpenLog.
type Options struct {
	DataDir       string
	SnapshotIndex uint64 // of the newest snapshot: the log must go on from there
	SnapshotTaken bool   // it was taken of this log
	Reserve       int64  // bytes kept free for the log; 0 is DefaultReserve

	// Step, for fault tests, is called with NAME:before and NAME:after, where NAME
	// is append, configuration (an append of one), term, vote, truncate, and of
	// Snapshots snapshot or install with :create, :write (the first) and :close.
	// What it takes is part of the write's time.
	Step func(step string)
	// Hang, if not nil, is told of writes that hang.
	Hang *Hang
}

// DefaultReserve is more than the appends need that can be under way when the
// disk becomes full.
const DefaultReserve = 16 << 20

// Log is Raft's log and stable store: raft-boltdb, and around it a checksum for
// each entry (bolt has none for its data), a reserve for the moment when the
// disk is full, and the time that appends take.
type Log struct {
	bolt    *raftboltdb.BoltStore
	path    string
	reserve *reserve
	failed  atomic.Pointer[error]

	interrupt   sync.Once
	closing     sync.Once
	interrupted chan struct{}

	step     func(string)
	hang     *Hang
	lastTerm atomic.Uint64 // of the newest entry
	snapshot atomic.Pointer[covered]
	Appends  Latency // how long appends took, fsync included

	// OnAppend, if set before the log is used, is told of every append.
	OnAppend func(entries int, size int64)
	// OnWrite, likewise, of what every synced write took that succeeded: appends,
	// votes and terms.
	OnWrite func(took time.Duration)

	// OnDamage, likewise, of an entry that can't be read any more. If it returns
	// true nothing good can come of going on, and the reader, which is Raft and
	// would panic, waits for Interrupt and ends.
	OnDamage func(index uint64, err error) (halt bool)

	// turn is held by whoever uses stable. It is no mutex: a write may hang, and
	// the simulated clock of tests does not count waiting for a mutex as waiting.
	turn   chan struct{}
	stable map[string][]byte // what Set has written, to skip writing it again
}

// Contents is what OpenLog found.
type Contents struct {
	First, Last uint64
	Bytes       int64 // of the entries
	// Stale says that the file's record of its last write is invalid. A crash
	// while it was made leaves that, and then nothing is lost; if it was damaged
	// later, the last append is.
	Stale bool
}

// OpenLog opens the log of a data dir, or makes it, and verifies every entry in
// it. A log that can't be used is ErrDamaged.
func OpenLog(o Options) (*Log, Contents, error) {
	if o.Reserve == 0 {
		o.Reserve = DefaultReserve
	}
	l := &Log{
		path:        LogPath(o.DataDir),
		reserve:     &reserve{path: filepath.Join(Path(o.DataDir), "reserve"), size: o.Reserve},
		interrupted: make(chan struct{}),
		turn:        make(chan struct{}, 1),
		stable:      map[string][]byte{},
		step:        o.Step,
		hang:        o.Hang,
	}
	c, err := l.open(o)
	if isNoSpace(err) && l.reserve.release() {
		c, err = l.open(o) // opening writes a little
	}
	if err != nil {
		return nil, c, err
	}
	l.reserve.acquire()
	return l, c, nil
}

func (l *Log) open(o Options) (c Contents, err error) {
	closed, fresh := readMark(l.path), false
	switch st, err := os.Stat(l.path); {
	case errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0:
		fresh = true
		switch {
		case o.SnapshotIndex > 0:
			return c, fmt.Errorf("%w: %s is missing or empty, but there is a snapshot", ErrDamaged, l.path)
		case closed != nil && closed.Index > 0:
			return c, fmt.Errorf("%w: %s is missing or empty; it ended with entry %d when it was closed", ErrDamaged, l.path, closed.Index)
		case Owner(o.DataDir) != "":
			return c, fmt.Errorf("%w: %s is missing or empty, and %s beside it says that there was one", ErrDamaged, l.path, ownerPath(o.DataDir))
		}
	case err == nil && !st.Mode().IsRegular():
		return c, fmt.Errorf("%w: %s is not a file", ErrDamaged, l.path)
	}
	if !fresh { // what is refused stays as it is
		stale, err := checkBolt(l.path)
		if err != nil {
			return c, fmt.Errorf("%w: %s: %w", ErrDamaged, l.path, err)
		}
		if err := l.openBolt(&bbolt.Options{Timeout: time.Second, ReadOnly: true}); err != nil {
			return c, err
		}
		c, err = l.verify(o, closed)
		if cerr := l.bolt.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return c, err
		}
		c.Stale = stale && closed == nil
	}
	err = l.openBolt(&bbolt.Options{
		Timeout:        time.Second,
		NoFreelistSync: true, // the list is found again on open; writing it costs each append
		FreelistType:   bbolt.FreelistMapType,
	})
	if err == nil {
		if err = removeMark(l.path); err != nil {
			l.bolt.Close()
			err = fmt.Errorf("open raft log: %w", err)
		}
	}
	return c, err
}

func (l *Log) openBolt(o *bbolt.Options) error {
	err := l.guard("open", func() (err error) {
		l.bolt, err = raftboltdb.New(raftboltdb.Options{Path: l.path, BoltOptions: o})
		return err
	})
	switch {
	case err == nil:
		return nil
	case isNoSpace(err), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return fmt.Errorf("open raft log %s: %w", l.path, err)
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("open raft log %s: another process uses it", l.path)
	}
	return fmt.Errorf("%w: %s can't be opened: %w", ErrDamaged, l.path, err)
}

// Interrupt ends the waiting of Set, see there. It is safe to call twice.
func (l *Log) Interrupt() { l.interrupt.Do(func() { close(l.interrupted) }) }

// Close closes the file. It is safe to call twice.
func (l *Log) Close() error {
	l.Interrupt()
	l.closing.Do(l.writeMark)
	return l.bolt.Close()
}

// Path is the file of the log.
func (l *Log) Path() string { return l.path }

// LastTerm is the term of the newest entry.
func (l *Log) LastTerm() uint64 { return l.lastTerm.Load() }

// Room returns nil when there is room for appends. When the disk was found full
// it is ErrNoSpace until the reserve could be set aside again, which Room tries.
// When the disk failed it is ErrFailed.
func (l *Log) Room() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return l.reserve.check()
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) { return l.bolt.FirstIndex() }

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) { return l.bolt.LastIndex() }

// GetLog implements raft.LogStore. An entry whose checksum is wrong is
// ErrDamaged, see OnDamage.
func (l *Log) GetLog(index uint64, e *raft.Log) error {
	err := l.guard("read", func() error { return l.bolt.GetLog(index, e) })
	switch {
	case errors.Is(err, raft.ErrLogNotFound) && l.covers(index):
		*e = raft.Log{Index: index, Term: l.snapshot.Load().term, Type: raft.LogNoop}
		return nil
	case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, berrors.ErrDatabaseNotOpen):
		return err
	case err == nil:
		err = unseal(index, e)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w: %s: entry %d: %w", ErrDamaged, l.path, index, err)
	if l.OnDamage != nil && l.OnDamage(index, err) {
		<-l.interrupted
		runtime.Goexit()
	}
	return err
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore. When the disk is full the reserve is
// given up, so that what is under way succeeds while Room refuses what comes
// after it.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	l.forget(entries[0].Index)
	sealed, size := seal(entries)
	start := time.Now()
	err := l.writing(stepOfLogs(entries), func() error { return l.bolt.StoreLogs(sealed) })
	if err != nil {
		return err
	}
	l.Appends.Observe(time.Since(start))
	l.lastTerm.Store(entries[len(entries)-1].Term)
	l.tell(start)
	if l.OnAppend != nil {
		l.OnAppend(len(entries), size)
	}
	return nil
}

func (l *Log) tell(start time.Time) {
	if l.OnWrite != nil {
		l.OnWrite(time.Since(start))
	}
}

// DeleteRange implements raft.LogStore. The end of the log is removed only while
// there is room: Raft does so to write other entries in its place, and if it then
// could not, it would believe in entries that are gone.
func (l *Log) DeleteRange(from, to uint64) error {
	last, err := l.bolt.LastIndex()
	if err != nil {
		return err
	}
	if to >= last {
		if err := l.Room(); err != nil {
			return err
		}
	}
	return l.writing("truncate", func() error { return l.bolt.DeleteRange(from, to) })
}

// writing runs a write, once more with the reserve released if there was no
// space, and sorts its errors.
func (l *Log) writing(name string, do func() error) error {
	write := func() error {
		return l.hang.watch(func() error { return step(l.step, name, func() error { return l.guard("write", do) }) })
	}
	err := write()
	if isNoSpace(err) && l.reserve.release() {
		err = write()
	}
	switch {
	case err == nil:
		return nil
	case isNoSpace(err):
		return fmt.Errorf("%w: %s: %w", ErrNoSpace, l.path, err)
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return err
	}
	// After a failed fsync the kernel may call the pages clean that never
	// reached the disk: a second try would succeed and mean nothing.
	err = fmt.Errorf("%w: write %s: %w", ErrFailed, l.path, err)
	l.failed.CompareAndSwap(nil, &err)
	return err
}

// Set implements raft.StableStore. Raft panics when a term can't be saved, so
// Set waits for space instead, and for ever once the disk has failed.
// Interrupt ends the wait by ending the goroutine, which is Raft's own: neither of the
// answers Set could give would be true.
func (l *Log) Set(key, val []byte) error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if have, ok := l.stable[string(key)]; ok && bytes.Equal(have, val) {
		return nil
	}
	for {
		var err error
		start := time.Now()
		if failed := l.failed.Load(); failed != nil {
			err = *failed
		} else if err = l.writing(stepOf(key), func() error { return l.bolt.Set(key, sealValue(key, val)) }); err == nil {
			l.stable[string(key)] = bytes.Clone(val)
			l.tell(start)
			return nil
		}
		wait := time.After(250 * time.Millisecond)
		if !errors.Is(err, ErrNoSpace) {
			wait = nil
		}
		select {
		case <-wait:
		case <-l.interrupted:
			runtime.Goexit()
		}
	}
}

// Get implements raft.StableStore.
func (l *Log) Get(key []byte) ([]byte, error) {
	sealed, err := l.bolt.Get(key)
	if err != nil {
		return nil, err // Raft compares its text
	}
	val, err := openValue(key, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, l.path, err)
	}
	l.turn <- struct{}{}
	l.stable[string(key)] = bytes.Clone(val)
	<-l.turn
	return val, nil
}

// SetUint64 implements raft.StableStore.
func (l *Log) SetUint64(key []byte, val uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 implements raft.StableStore.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	val, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	if len(val) != 8 {
		return 0, fmt.Errorf("%w: %s: %q holds %d bytes, should be 8", ErrDamaged, l.path, key, len(val))
	}
	return binary.BigEndian.Uint64(val), nil
}
