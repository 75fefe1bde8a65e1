package raftdir

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func TestSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	var got []string
	report := func(s string) { got = append(got, s) }
	l, _, err := OpenLog(Options{DataDir: dir, Reserve: 1 << 20, Step: report})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	snaps, err := OpenSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	snaps.Step = report
	snaps.LastIndex = func() uint64 { last, _ := l.LastIndex(); return last }
	take := func(index uint64) error {
		s, err := snaps.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{}, 1, addresses{})
		if err != nil {
			return err
		}
		for range 2 {
			if _, err := s.Write([]byte("x")); err != nil {
				return err
			}
		}
		return s.Close()
	}
	config := &raft.Log{Index: 3, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{})}
	for _, c := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return l.StoreLogs(entries(1, 2, 10)) }, []string{"append"}},
		{func() error { return l.StoreLog(config) }, []string{"configuration"}},
		{func() error { return l.SetUint64([]byte("CurrentTerm"), 2) }, []string{"term"}},
		{func() error { return l.SetUint64([]byte("CurrentTerm"), 2) }, nil}, // is there already
		{func() error { return l.Set([]byte("LastVoteCand"), []byte("a")) }, []string{"vote"}},
		{func() error { return l.DeleteRange(3, 3) }, []string{"truncate"}},
		{func() error { return take(2) }, []string{"snapshot:create", "snapshot:write", "snapshot:close"}},
		{func() error { return take(9) }, []string{"install:create", "install:write", "install:close"}},
	} {
		got = nil
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, s := range c.want {
			want = append(want, s+":before", s+":after")
		}
		if !slices.Equal(got, want) {
			t.Errorf("steps %q, want %q", got, want)
		}
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	changes := make(chan bool, 4)
	after := time.Hour
	h := &Hang{After: func() time.Duration { return after }, Changed: func(hangs bool) { changes <- hangs }}
	failed := errors.New("failed")
	if err := h.watch(func() error { return failed }); err != failed || len(changes) != 0 {
		t.Errorf("a quick write: %v, told of %d changes", err, len(changes))
	}
	after = 20 * time.Millisecond
	release := make(chan struct{})
	go func() { _ = h.watch(func() error { <-release; return nil }) }()
	if !<-changes {
		t.Error("a write that hangs begins with its end")
	}
	close(release)
	if <-changes {
		t.Error("it still hangs")
	}
}

// TestTruncationNeedsRoom: while the disk is full the end of the log stays.
func TestTruncationNeedsRoom(t *testing.T) {
	t.Parallel()
	l, _ := mustOpen(t, t.TempDir())
	if err := l.StoreLogs(entries(1, 9, 10)); err != nil {
		t.Fatal(err)
	}
	l.reserve.mu.Lock()
	l.reserve.full, l.reserve.next = true, time.Now().Add(time.Hour)
	l.reserve.mu.Unlock()
	if err := l.DeleteRange(5, 9); !errors.Is(err, ErrNoSpace) {
		t.Errorf("the end of the log is removed: %v", err)
	}
	if err := l.DeleteRange(1, 4); err != nil {
		t.Errorf("the begin of the log is not: %v", err)
	}
	if first, _ := l.FirstIndex(); first != 5 {
		t.Errorf("the log begins at %d", first)
	}
}
