package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// ForkOptions for Fork. All but RevisionStep are required.
type ForkOptions struct {
	Member raftdir.Member // the only one from now on
	Epoch  raftdir.Epoch  // that begins
	// RevisionStep is added to the revision; 0 is DefaultRevisionStep: those that
	// were lost may have given out revisions which are not in this log.
	RevisionStep int64
}

// Forked says what Fork has made.
type Forked struct {
	Index    uint64 `json:"index"` // last of the log, whose entries are all in the new state
	Term     uint64 `json:"term"`  // of that entry
	Revision int64  `json:"revision"`
	Keys     int    `json:"keys"`
	Aside    string `json:"aside"` // where the former log was moved
}

// Fork begins a new epoch with all that is in the log of a data dir, in which its
// member is the only one. Entries of which it is not known whether a majority had
// them count. The caller holds the data dir's lock. The former log is moved aside;
// a crash leaves it in place, or the new one (see raftdir.Renew).
func Fork(ctx context.Context, dataDir string, o ForkOptions) (*Forked, error) {
	if o.RevisionStep == 0 {
		o.RevisionStep = DefaultRevisionStep
	}
	f, out, err := replay(ctx, dataDir)
	if err != nil {
		return nil, err
	}
	// The new epoch is in the state, so that a snapshot of it says which it is of.
	commands := []fsm.Command{fsm.One(fsm.Op{Type: fsm.Put, Key: raftdir.EpochKey, Value: o.Epoch.Encode(), Expect: fsm.Any})}
	f.Store().View().Ascend(upgradePrefix, "", func(kv *store.KeyValue) bool {
		commands = append(commands, fsm.One(fsm.Op{Type: fsm.Delete, Key: kv.Key, Expect: fsm.Any}))
		return true
	})
	data, err := fsm.EncodeEntry(commands...)
	if err != nil {
		return nil, err
	}
	index, term := out.Index+1, out.Term+1
	f.Apply(&raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: data})
	s := f.Capture()
	if s.Revision+o.RevisionStep < s.Revision {
		return nil, fmt.Errorf("revision %d can't go %d further", s.Revision, o.RevisionStep)
	}
	s.Revision += o.RevisionStep
	s.Renewed = true
	out.Revision, out.Keys = s.Revision, s.Keys()
	out.Aside, err = raftdir.Renew(dataDir, func(dir string) error {
		err := raftdir.Create(dir, o.Member, index, term, func(w io.Writer) error { return s.Write(ctx, w) })
		return errors.Join(err, raftdir.SaveEpoch(dir, o.Epoch))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// LogInfo is what the log of a data dir says.
type LogInfo struct {
	Index, Term uint64 // of the last entry; 0 of an empty log
	Members     []LogMember
}

// LogMember is a server of the log's newest configuration.
type LogMember struct {
	raftdir.Member
	Voter bool
}

// ReadLog reads and verifies the log of a data dir that no process uses.
func ReadLog(dataDir string) (info LogInfo, err error) {
	log, meta, _, err := openState(dataDir)
	if err != nil {
		return info, err
	}
	defer log.Close()
	last, err := log.LastIndex()
	if err != nil {
		return info, err
	}
	info.Index, info.Term = meta.Index, meta.Term
	if last > meta.Index {
		info.Index, info.Term = last, log.LastTerm()
	}
	config := meta.Configuration
	for i := meta.Index + 1; i <= last; i++ {
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			return info, fmt.Errorf("log entry %d: %w", i, err)
		}
		if e.Type == raft.LogConfiguration {
			config = raft.DecodeConfiguration(e.Data)
		}
	}
	for _, s := range config.Servers {
		info.Members = append(info.Members, LogMember{raftdir.Member{ID: string(s.ID), Addr: string(s.Address)}, s.Suffrage == raft.Voter})
	}
	return info, nil
}

// openState opens log and newest snapshot. Without a snapshot meta is zero.
func openState(dataDir string) (log *raftdir.Log, meta raft.SnapshotMeta, snaps *raftdir.Snapshots, err error) {
	if !raftdir.Exists(dataDir) {
		return nil, meta, nil, fmt.Errorf("%s holds no log", filepath.Join(dataDir, "raft"))
	}
	if snaps, err = raftdir.OpenSnapshots(dataDir, hclog.NewNullLogger()); err != nil {
		return nil, meta, nil, err
	}
	all, err := snaps.List()
	if err != nil {
		return nil, meta, nil, fmt.Errorf("list raft snapshots: %w", err)
	}
	if len(all) > 0 {
		meta = *all[0]
	}
	log, _, err = raftdir.OpenLog(raftdir.Options{DataDir: dataDir, SnapshotIndex: meta.Index})
	return log, meta, snaps, err
}

// replay gives the state after the last entry of the log.
func replay(ctx context.Context, dataDir string) (f *fsm.FSM, out *Forked, err error) {
	log, meta, snaps, err := openState(dataDir)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	defer func() { // the state machine stops at what it does not know
		if p := recover(); p != nil {
			f, out, err = nil, nil, fmt.Errorf("replay the log: %v", p)
		}
	}()
	f = fsm.New(store.New(store.Config{}))
	f.SetFiles(func(file string, _ int64, wrong error) (io.ReadCloser, error) {
		if wrong != nil {
			return nil, fmt.Errorf("%s: %w", raftdir.RestoredFile(dataDir, file), wrong)
		}
		return os.Open(raftdir.RestoredFile(dataDir, file))
	})
	out = &Forked{Index: meta.Index, Term: meta.Term}
	if meta.ID != "" {
		file, err := os.Open(snaps.File(meta.ID))
		if err != nil {
			return nil, nil, fmt.Errorf("raft snapshot: %w", err)
		}
		if err := f.Restore(file); err != nil {
			return nil, nil, fmt.Errorf("raft snapshot %s: %w", file.Name(), err)
		}
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, nil, err
	}
	for i := meta.Index + 1; i <= last; i++ {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			return nil, nil, fmt.Errorf("log entry %d: %w", i, err)
		}
		if e.Type == raft.LogCommand {
			f.Apply(&e)
		}
		if err := f.Halted(); err != nil {
			return nil, nil, fmt.Errorf("a snapshot was restored into the running cluster, and its file is needed: %w", err)
		}
		out.Index, out.Term = e.Index, e.Term
	}
	if out.Index == 0 {
		return nil, nil, fmt.Errorf("the log in %s is empty", raftdir.Path(dataDir))
	}
	return f, out, nil
}
