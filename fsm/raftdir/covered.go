package raftdir

import "github.com/hashicorp/raft"

// covered is the last entry that a snapshot holds.
type covered struct{ index, term uint64 }

// Covered tells the log that a snapshot holds everything up to an entry.
//
// Raft asks its log for the entry before those that a leader sends. When that
// is the snapshot's last, and other entries follow it, Raft asks in vain: its
// log begins behind it. A leader whose log ends there would then go back for ever
// looking for an entry that both have. So the log answers with that entry's term.
func (l *Log) Covered(index, term uint64) {
	for {
		old := l.snapshot.Load()
		if old != nil && old.index >= index || l.snapshot.CompareAndSwap(old, &covered{index, term}) {
			return
		}
	}
}

// Snapshot is the last entry of the newest snapshot that Covered was told of.
func (l *Log) Snapshot() (index, term uint64) {
	if s := l.snapshot.Load(); s != nil {
		return s.index, s.term
	}
	return 0, 0
}

// covers says whether the log has to answer for an entry that it does not hold.
// The next is there only if Raft has restored the snapshot, or had taken it. The
// one before is not, nor is this the first: so no leader sends what was made up
// here, for that it would have to know the entry before.
func (l *Log) covers(index uint64) bool {
	s := l.snapshot.Load()
	if s == nil || s.index != index || index == 1 {
		return false
	}
	var e raft.Log
	return l.bolt.GetLog(index+1, &e) == nil && l.bolt.GetLog(index-1, &e) != nil
}

// forget removes what the log holds before a snapshot that was installed, when
// the first entry behind it is stored: there would be a gap.
func (l *Log) forget(next uint64) {
	s := l.snapshot.Load()
	if s == nil || s.index+1 != next {
		return
	}
	first, err := l.bolt.FirstIndex()
	if err != nil || first == 0 {
		return
	}
	if last, err := l.bolt.LastIndex(); err == nil && last < s.index {
		_ = l.writing("truncate", func() error { return l.bolt.DeleteRange(first, last) }) // tried for tidiness
	}
}
