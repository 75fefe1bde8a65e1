package raftdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Member is a server of a Raft configuration.
type Member struct {
	ID   string `json:"id"`
	Addr string `json:"addr"` // host:port of its Raft port
}

// Create makes the Raft state of a cluster whose only member is m, in a data
// dir without one. write gives the state machine's snapshot, which ends at
// index and term. When Create returns nil everything is on the disk.
func Create(dataDir string, m Member, index, term uint64, write func(io.Writer) error) error {
	if Exists(dataDir) {
		return fmt.Errorf("create raft state: %s holds some already", Path(dataDir))
	}
	if err := os.MkdirAll(Path(dataDir), 0o700); err != nil {
		return fmt.Errorf("create raft state: %w", err)
	}
	// Raft takes index 0 for nothing at all.
	index, term = max(index, 1), max(term, 1)
	snaps, err := OpenSnapshots(dataDir, hclog.NewNullLogger())
	if err != nil {
		return fmt.Errorf("create raft state: %w", err)
	}
	config := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Addr)}}}
	sink, err := snaps.Create(raft.SnapshotVersionMax, index, term, config, index, addresses{})
	if err != nil {
		return fmt.Errorf("create raft snapshot: %w", err)
	}
	if err := write(sink); err != nil {
		return fmt.Errorf("create raft snapshot: %w", errors.Join(err, sink.Cancel()))
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("create raft snapshot: %w", err)
	}
	l, _, err := OpenLog(Options{DataDir: dataDir})
	if err != nil {
		return fmt.Errorf("create raft log: %w", err)
	}
	// Not Set: it would wait for space, and here is somebody to tell.
	err = l.writing("term", func() error {
		return l.bolt.Set([]byte(keyTerm), sealValue([]byte(keyTerm), binary.BigEndian.AppendUint64(nil, term)))
	})
	if err := errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("create raft log: %w", err)
	}
	return nil
}

// addresses is the part of a transport that making a snapshot asks for: the
// form of peers that versions of Raft before 1.0 read.
type addresses struct{ raft.Transport }

func (addresses) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }
