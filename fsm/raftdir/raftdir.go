// Package raftdir is one member's Raft state on disk: where its files are, the
// log with checksums, and what is done when the disk is full or its content
// damaged. It holds no Raft instance: cluster/consensus runs one on it, backup
// makes one out of a snapshot.
//
//	<data-dir>/raft/raft.db      log and votes (raft-boltdb)
//	<data-dir>/raft/reserve      space kept free for the log
//	<data-dir>/raft/snapshots/   state machine snapshots, the two newest
//	<data-dir>/raft/admitted     of a new server that has not caught up, see cluster/consensus
//
// What a crash leaves: an append is there or not, never half; a snapshot that
// was not finished ends in .tmp and is removed by the next start.
package raftdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Path is the directory of Raft's files below a data dir.
func Path(dataDir string) string { return filepath.Join(dataDir, "raft") }

// LogPath is the log's file below a data dir.
func LogPath(dataDir string) string { return filepath.Join(Path(dataDir), "raft.db") }

// Exists says whether the data dir holds Raft state.
func Exists(dataDir string) bool {
	if _, err := os.Stat(LogPath(dataDir)); err == nil {
		return true
	}
	entries, _ := os.ReadDir(filepath.Join(Path(dataDir), "snapshots"))
	return len(entries) > 0
}

const retainSnapshots = 2

// Snapshots is a raft.SnapshotStore that offers the newest snapshot only. Raft
// would fall back to an older one when the newest can't be read, and then miss
// the log entries in between.
type Snapshots struct {
	*raft.FileSnapshotStore
	dir string

	// For fault tests, see Options.Step. LastIndex tells apart a snapshot that
	// another member sends. Both are set before the first use, or never.
	Step      func(step string)
	LastIndex func() uint64

	// Done, if set before the first use, is told of the last entry of each
	// snapshot that was completed.
	Done func(index, term uint64)
}

// OpenSnapshots opens the snapshots of a data dir, and removes what a crash
// left of unfinished ones.
func OpenSnapshots(dataDir string, l hclog.Logger) (*Snapshots, error) {
	s, err := raft.NewFileSnapshotStoreWithLogger(Path(dataDir), retainSnapshots, l)
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", Path(dataDir), err)
	}
	dir := filepath.Join(Path(dataDir), "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
			}
		}
	}
	return &Snapshots{FileSnapshotStore: s, dir: dir}, nil
}

// List returns the newest snapshot, if there is one.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.FileSnapshotStore.List()
	if len(all) > 1 {
		all = all[:1]
	}
	return all, err
}

// File is the file that holds the state of a snapshot. It has the format of
// skiff's snapshot files.
func (s *Snapshots) File(id string) string { return filepath.Join(s.dir, id, "state.bin") }

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

var (
	// ErrDamaged says that a file of the Raft state is not as it was written.
	ErrDamaged = errors.New("raft state is damaged")
	// ErrNoSpace says that the disk is full. Nothing was written; the same write
	// works again once there is room.
	ErrNoSpace = errors.New("no space left for the log")
	// ErrFailed says that the disk failed in a way after which nothing that was
	// written can be relied on. Only a restart tries again.
	ErrFailed = errors.New("log store failed")
)
