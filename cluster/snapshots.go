package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// Snapshots are the scheduled ones of a server. Each server saves to a folder of
// its own; the one that leads stores in Remote as well.
type Snapshots struct {
	Cron      *backup.Cron
	Dir       string       // default DataDir/snapshots
	Remote    backup.Place // nil: none
	Retention backup.Retention
	Save      backup.SaveOptions
	// Soon replaces production values, for tests.
	Soon time.Duration
}

// snapshotSpread is the time over which servers spread what is due at the same
// moment, so that not all of them write at once.
const snapshotSpread = 20 * time.Second

// openSnapshots makes the schedule, if there is to be one.
func (s *Server) openSnapshots() (err error) {
	c := s.cfg.Snapshots
	if c == nil {
		return nil
	}
	h := fnv.New32a()
	h.Write([]byte(s.id))
	spread := time.Duration(h.Sum32()%uint32(snapshotSpread/time.Second)) * time.Second
	if c.Soon != 0 {
		spread = 0
	}
	s.snapshotReport = newSnapshotReport(s)
	s.schedule, err = backup.NewSchedule(backup.ScheduleConfig{
		Cron: c.Cron, Source: s.Snapshot, Dir: c.Dir, Remote: c.Remote, Retention: c.Retention, Save: c.Save, Spread: spread, Soon: c.Soon,
		ClusterID: func() string { return s.node.Stats().ClusterID }, Leading: s.confirmLeading,
		Done: s.snapshotReport.done, Failed: s.snapshotReport.failed, Logger: s.cfg.Logger.With("component", "snapshots"),
	})
	return err
}

// confirmLeading fails if this server does not lead, as a majority says. It
// writes nothing to the log.
func (s *Server) confirmLeading(ctx context.Context) error {
	if err := s.node.ReadIndex(ctx); err != nil {
		return err
	}
	if !s.node.IsLeader() {
		return consensus.ErrNotLeader
	}
	return nil
}

// runSnapshots saves when it is due, from when the API is ready until ctx ends or
// this server is no member any more.
func (s *Server) runSnapshots(ctx context.Context) error {
	if s.schedule == nil {
		return nil
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.members.Membership(), cancel)()
	defer s.snapshotReport.start()()
	return s.schedule.Run(ctx)
}

// snapshotDuties are what the leader does about snapshots.
func (s *Server) snapshotDuties() []Duty {
	if s.schedule == nil || s.cfg.Snapshots.Remote == nil {
		return nil
	}
	return []Duty{{Name: "snapshots", Run: func(ctx context.Context) error {
		select { // a leader may have its duties before its API is ready
		case <-s.snapshotReport.begun:
		case <-ctx.Done():
			return nil
		}
		return s.schedule.Upload(ctx)
	}}}
}

// snapshotStatus answers membership.MethodSnapshots.
func (s *Server) snapshotStatus(context.Context, string, []byte) ([]byte, error) {
	st := membership.SnapshotStatus{Schedule: membership.SnapshotsOff}
	if s.schedule != nil {
		st.Schedule, st.Places = s.schedule.Cron().String(), s.schedule.Status()
		if r := s.cfg.Snapshots.Remote; r != nil {
			st.Remote = r.String()
		}
	}
	return json.Marshal(st)
}

// askSnapshots asks a server for its snapshotStatus.
func (s *Server) askSnapshots(ctx context.Context, id string) (st membership.SnapshotStatus, err error) {
	b, err := s.node.Call(ctx, id, membership.MethodSnapshots, nil)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		return st, fmt.Errorf("ask for the snapshots of %s: %w", id, err)
	}
	return st, nil
}
