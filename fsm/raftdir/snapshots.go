package raftdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const retainSnapshots = 2

// Snapshots is a raft.SnapshotStore that offers the newest snapshot only. Raft
// would fall back to an older one when the newest can't be read, and then miss
// the log entries in between.
type Snapshots struct {
	*raft.FileSnapshotStore
	dir string
	// Taken: the newest snapshot at OpenSnapshots was taken here, and not sent by
	// another member.
	Taken bool

	// For fault tests, see Options.Step. LastIndex tells apart a snapshot that
	// another member sends. Both are set before the first use, or never.
	Step      func(step string)
	LastIndex func() uint64

	// Done, if set before the first use, is told of the last entry of each
	// snapshot that was completed.
	Done func(index, term uint64)
	// Check, if set before the first use, reads the state that another member
	// sends to its end, and refuses what is no snapshot. It gets every byte.
	Check func(io.Reader) error
	// Damaged, if set before the first use, is told of a snapshot that turns out
	// to be damaged when it is to be sent to another member.
	Damaged func(err error)

	mu       sync.Mutex
	verified string          // snapshot whose state VerifyState has read; guarded by mu
	open     map[string]bool // unfinished directories in use; guarded by mu
}

// OpenSnapshots opens the snapshots of a data dir, and removes what a crash
// left of unfinished ones.
func OpenSnapshots(dataDir string, l hclog.Logger) (*Snapshots, error) {
	s, err := raft.NewFileSnapshotStoreWithLogger(Path(dataDir), retainSnapshots, l)
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", Path(dataDir), err)
	}
	dir := filepath.Join(Path(dataDir), "snapshots")
	out := &Snapshots{FileSnapshotStore: s, dir: dir, open: map[string]bool{}}
	if err := out.sweep(); err != nil {
		return nil, err
	}
	return out, out.verify()
}

// List returns the newest snapshot, if there is one.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.FileSnapshotStore.List()
	if len(all) > 1 {
		all = all[:1]
	}
	return all, err
}

// Open implements raft.SnapshotStore.
func (s *Snapshots) Open(id string) (m *raft.SnapshotMeta, r io.ReadCloser, err error) {
	s.mu.Lock()
	verified := s.verified == id
	s.verified = ""
	s.mu.Unlock()
	switch {
	case verified:
		m, r, err = s.openVerified(id)
	default:
		if err = s.verifyMeta(id); err == nil {
			m, r, err = s.FileSnapshotStore.Open(id)
		}
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %s: %w", ErrDamaged, s.File(id), err)
	}
	if err != nil && s.Damaged != nil {
		s.Damaged(err)
	}
	return m, r, err
}

// VerifyState reads the state of the newest snapshot, if there is one, with check,
// which is to read it to its end. Open need not do so again the first time.
func (s *Snapshots) VerifyState(check func(io.Reader) error) error {
	all, err := s.List()
	if err != nil || len(all) == 0 {
		return err
	}
	f, err := os.Open(s.File(all[0].ID))
	if err == nil {
		err = check(f)
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, s.File(all[0].ID), reason(err))
	}
	s.mu.Lock()
	s.verified = all[0].ID
	s.mu.Unlock()
	return nil
}

func (s *Snapshots) openVerified(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	all, err := s.List()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range all {
		if m.ID == id {
			f, err := os.Open(s.File(id))
			return m, f, err
		}
	}
	return nil, nil, os.ErrNotExist
}

// File is the file that holds the state of a snapshot. It has the format of
// skiff's snapshot files.
func (s *Snapshots) File(id string) string { return filepath.Join(s.dir, id, stateFile) }

// Files are the files of all snapshots, the newest first.
func (s *Snapshots) Files() (files []string) {
	all, err := s.FileSnapshotStore.List()
	if err != nil {
		return nil
	}
	for _, m := range all {
		files = append(files, s.File(m.ID))
	}
	return files
}
