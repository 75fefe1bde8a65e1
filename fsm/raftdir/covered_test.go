package raftdir

import (
	"errors"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestCovered: the log answers for the last entry of a snapshot where Raft needs
// it, and nowhere else.
func TestCovered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		stored     [2]uint64
		removed    uint64 // up to here
		index      uint64 // of the snapshot
		want, next bool
	}{
		{"taken", [2]uint64{1, 9}, 7, 7, true, false},
		{"taken, all of the log is left", [2]uint64{1, 9}, 0, 7, true, false},
		{"not the snapshot's", [2]uint64{1, 9}, 7, 6, false, false},
		{"installed, nothing follows", [2]uint64{1, 3}, 0, 7, false, false},
		{"installed, an entry follows", [2]uint64{1, 3}, 0, 7, true, true},
		{"installed, only its last entry was missing", [2]uint64{1, 6}, 0, 7, true, true},
		{"the first entry of all", [2]uint64{1, 3}, 1, 1, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, _ := mustOpen(t, t.TempDir())
			if err := l.StoreLogs(entries(c.stored[0], c.stored[1], 10)); err != nil {
				t.Fatal(err)
			}
			if c.removed > 0 {
				if err := l.DeleteRange(1, c.removed); err != nil {
					t.Fatal(err)
				}
			}
			l.Covered(c.index, 5)
			l.Covered(c.index-1, 4) // older news
			if c.next {
				if err := l.StoreLogs(entries(c.index+1, c.index+2, 10)); err != nil {
					t.Fatal(err)
				}
				if first, _ := l.FirstIndex(); first != c.index+1 {
					t.Errorf("the log begins at %d", first)
				}
			}
			asked := uint64(7)
			if c.index == 1 {
				asked = 1
			}
			var e raft.Log
			err := l.GetLog(asked, &e)
			if c.want != (err == nil) || err != nil && !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatalf("entry %d: %v", asked, err)
			}
			if c.want && c.removed+1 > asked && (e.Index != 7 || e.Term != 5) {
				t.Errorf("entry %d of term %d", e.Index, e.Term)
			}
			for _, i := range []uint64{asked - 1, asked + 3} {
				if i > c.stored[1] || i <= c.removed || c.next {
					if err := l.GetLog(i, &e); !errors.Is(err, raft.ErrLogNotFound) {
						t.Errorf("entry %d: %v", i, err)
					}
				}
			}
		})
	}
}

// TestSnapshotsTell: who asked hears of snapshots that are complete.
func TestSnapshotsTell(t *testing.T) {
	t.Parallel()
	s, err := OpenSnapshots(t.TempDir(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	s.Done = func(index, term uint64) { got = append(got, index, term) }
	for i, end := range []func(raft.SnapshotSink) error{raft.SnapshotSink.Close, raft.SnapshotSink.Cancel} {
		sink, err := s.Create(raft.SnapshotVersionMax, uint64(10+i), 3, raft.Configuration{}, 1, addresses{})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 2*i {
			t.Errorf("told of %v before the end", got)
		}
		if err := end(sink); err != nil {
			t.Fatal(err)
		}
		_ = sink.Close()
	}
	if len(got) < 2 || got[0] != 10 || got[1] != 3 || len(got) > 2 {
		t.Errorf("told of %v", got)
	}
}
