// Package raftdir is one member's Raft state on disk: where its files are, the
// log with checksums, and what is done when the disk is full or its content
// damaged. It holds no Raft instance: cluster/consensus runs one on it, backup
// makes one out of a snapshot.
//
//	<data-dir>/raft/raft.db      log and votes (raft-boltdb)
//	<data-dir>/raft/closed       how the log ended when it was closed
//	<data-dir>/raft/member       ID of the member whose log it is
//	<data-dir>/raft/reserve      space kept free for the log
//	<data-dir>/raft/snapshots/   state machine snapshots, the two newest, each
//	                             with meta.json, state.bin and a seal of the former
//	<data-dir>/raft/restore/     files that restores in the log name
//	<data-dir>/raft/admitted     of a new server that has not caught up, see cluster/consensus
//	<data-dir>/raft/epoch        which history this is; without it the first
//	<data-dir>/raft/unasked      of a restored server that has not asked the others yet
//	<data-dir>/raft/rejoined     of a server that has given up its log, names what told it to
//	<data-dir>/raft.epoch-N/     the log that was given up last
//	<data-dir>/restoring         while a snapshot is restored into the data dir
//
// What a crash leaves: an append is there or not, never half; a snapshot that
// was not finished ends in .tmp and is removed by the next start.
package raftdir

import (
	"errors"
	"os"
	"path/filepath"
)

// Path is the directory of Raft's files below a data dir.
func Path(dataDir string) string { return filepath.Join(dataDir, "raft") }

// RestoredFile is where the file is that a restore in the log names.
func RestoredFile(dataDir, name string) string {
	return filepath.Join(Path(dataDir), "restore", filepath.Base(name))
}

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
