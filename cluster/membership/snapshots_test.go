package membership

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/backup"
)

func TestSnapshotWarnings(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ago := now.Add(-time.Hour)
	last := &backup.Saved{At: ago}
	place := func(change func(*backup.PlaceStatus)) backup.PlaceStatus {
		p := backup.PlaceStatus{Place: "/s", Last: last}
		if change != nil {
			change(&p)
		}
		return p
	}
	for name, tc := range map[string]struct {
		all  []SnapshotStatus
		want []string
	}{
		"none": {},
		"off":  {all: []SnapshotStatus{{Server: "a", Schedule: SnapshotsOff}}},
		"well": {all: []SnapshotStatus{{Server: "a", Remote: "s3://x", Places: []backup.PlaceStatus{place(nil), place(nil)}}, {Server: "b", Remote: "s3://x", Places: []backup.PlaceStatus{place(nil)}}}},
		"failed": {all: []SnapshotStatus{{Server: "a", Places: []backup.PlaceStatus{place(func(p *backup.PlaceStatus) { p.Error, p.Failed, p.Overdue = "full", &ago, &ago })}}},
			want: []string{"of a in /s failed 1h0m0s ago: full"}},
		"overdue": {all: []SnapshotStatus{{Server: "b", Places: []backup.PlaceStatus{place(func(p *backup.PlaceStatus) { p.Overdue = &ago })}}},
			want: []string{"newest snapshot of b in /s is of 2026-11-21T11:00:00Z"}},
		"none yet, overdue": {all: []SnapshotStatus{{Server: "b", Places: []backup.PlaceStatus{place(func(p *backup.PlaceStatus) { p.Overdue, p.Last = &ago, nil })}}},
			want: []string{"no snapshot of b in /s"}},
		"only a follower has the bucket": {all: []SnapshotStatus{{Server: "a"}, {Server: "b", Remote: "s3://x"}},
			want: []string{"the leader a stores no snapshots in s3://x, as b would"}},
		"only the leader has it": {all: []SnapshotStatus{{Server: "a", Remote: "s3://x"}, {Server: "b"}}},
	} {
		got := snapshotWarnings(tc.all, "a", now)
		if !slices.EqualFunc(got, tc.want, strings.Contains) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
