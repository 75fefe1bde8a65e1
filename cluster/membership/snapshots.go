package membership

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/backup"
)

// SnapshotStatus is how scheduled snapshots go on one server. Fields are only
// added.
type SnapshotStatus struct {
	Server   string `json:"server"`   // its name
	Schedule string `json:"schedule"` // as it was given; "off" for none
	// Remote is where the server stores snapshots as well while it leads.
	Remote string `json:"remote,omitempty"`
	// Places where it stores them now.
	Places []backup.PlaceStatus `json:"places,omitempty"`
}

// SnapshotsOff is the schedule of a server that has none.
const SnapshotsOff = "off"

// MethodSnapshots asks a server for its SnapshotStatus; any server may be asked.
const MethodSnapshots = "snapshots/status"

// snapshotsTimeout bounds how long servers are asked.
const snapshotsTimeout = time.Second

// gatherSnapshots begins to ask all servers that live. The result has those that
// have answered, sorted by name.
func (s *Service) gatherSnapshots(ctx context.Context) (result func() []SnapshotStatus) {
	if s.c.Snapshots == nil {
		return func() []SnapshotStatus { return nil }
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotsTimeout)
	var mu sync.Mutex
	var out []SnapshotStatus
	var asked sync.WaitGroup
	self := s.c.Self().ID
	for _, p := range s.c.Peers() {
		if !p.Role.Votes() || p.ID != self && p.State != Alive || s.Removed(p.ID) {
			continue
		}
		asked.Go(func() {
			st, err := s.c.Snapshots(ctx, p.ID)
			if err != nil {
				return // the table of members says what is wrong with it
			}
			st.Server = p.Name
			mu.Lock()
			defer mu.Unlock()
			out = append(out, st)
		})
	}
	return func() []SnapshotStatus {
		defer cancel()
		asked.Wait()
		slices.SortFunc(out, func(a, b SnapshotStatus) int { return strings.Compare(a.Server, b.Server) })
		return out
	}
}

// snapshotWarnings are about servers whose snapshots fail or do not come.
func snapshotWarnings(all []SnapshotStatus, leader string, now time.Time) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var without, with *SnapshotStatus
	for i := range all {
		s := &all[i]
		for _, p := range s.Places {
			switch {
			case p.Error != "" && p.Failed != nil:
				add("the snapshot of %s in %s failed %s ago: %s", s.Server, p.Place, now.Sub(*p.Failed).Round(time.Second), p.Error)
			case p.Overdue != nil && p.Last != nil:
				add("the newest snapshot of %s in %s is of %s: one was due at %s", s.Server, p.Place, p.Last.At.Format(time.RFC3339), p.Overdue.Format(time.RFC3339))
			case p.Overdue != nil:
				add("there is no snapshot of %s in %s: one was due at %s", s.Server, p.Place, p.Overdue.Format(time.RFC3339))
			}
		}
		switch {
		case s.Remote != "":
			with = s
		case s.Server == leader:
			without = s
		}
	}
	if with != nil && without != nil {
		add("the leader %s stores no snapshots in %s, as %s would: give all servers the same place", without.Server, with.Remote, with.Server)
	}
	return out
}
