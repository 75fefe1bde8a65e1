package raftdir

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// step reports to Options.Step: name with ":before", do, name with ":after".
func step(report func(string), name string, do func() error) error {
	if report == nil {
		return do()
	}
	report(name + ":before")
	err := do()
	report(name + ":after")
	return err
}

// stepOf names the write of a stable value.
func stepOf(key []byte) string {
	if string(key) == "CurrentTerm" {
		return "term"
	}
	return "vote"
}

// stepOfLogs names an append.
func stepOfLogs(entries []*raft.Log) string {
	for _, e := range entries {
		if e.Type == raft.LogConfiguration {
			return "configuration"
		}
	}
	return "append"
}

// Hang is told when a write to the log has not returned after some time.
type Hang struct {
	After func() time.Duration
	// Changed is called with true then, and with false when it has returned.
	Changed func(hangs bool)
}

// watch runs a write under the eyes of h, which may be nil.
func (h *Hang) watch(do func() error) error {
	if h == nil {
		return do()
	}
	var mu sync.Mutex
	hung, done := false, false
	t := time.AfterFunc(h.After(), func() {
		mu.Lock()
		defer mu.Unlock()
		if !done {
			hung = true
			h.Changed(true)
		}
	})
	defer func() {
		t.Stop()
		mu.Lock()
		defer mu.Unlock()
		done = true
		if hung {
			h.Changed(false)
		}
	}()
	return do()
}

// Create implements raft.SnapshotStore.
func (s *Snapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.create(v, index, term, c, ci, t)
	if err != nil || s.Done == nil {
		return sink, err
	}
	return &tellingSink{SnapshotSink: sink, done: func() { s.Done(index, term) }}, nil
}

func (s *Snapshots) create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	name := "snapshot"
	if s.LastIndex != nil && index > s.LastIndex() {
		name = "install"
	}
	if s.Step == nil {
		return s.begin(v, index, term, c, ci, t, name == "install")
	}
	var sink raft.SnapshotSink
	err := step(s.Step, name+":create", func() (err error) {
		sink, err = s.begin(v, index, term, c, ci, t, name == "install")
		return err
	})
	if err != nil {
		return nil, err
	}
	return &steppingSink{SnapshotSink: sink, step: s.Step, name: name}, nil
}

// steppingSink reports the first write to a snapshot, and its end.
type steppingSink struct {
	raft.SnapshotSink
	step  func(string)
	name  string
	wrote bool
}

func (s *steppingSink) Write(b []byte) (n int, err error) {
	if s.wrote {
		return s.SnapshotSink.Write(b)
	}
	s.wrote = true
	err = step(s.step, s.name+":write", func() error {
		n, err = s.SnapshotSink.Write(b)
		return err
	})
	return n, err
}

func (s *steppingSink) Close() error { return step(s.step, s.name+":close", s.SnapshotSink.Close) }

// tellingSink tells when a snapshot is complete.
type tellingSink struct {
	raft.SnapshotSink
	over bool
	done func()
}

func (s *tellingSink) Cancel() error {
	s.over = true
	return s.SnapshotSink.Cancel()
}

func (s *tellingSink) Close() error {
	err := s.SnapshotSink.Close()
	if err == nil && !s.over {
		s.over = true
		s.done()
	}
	return err
}
