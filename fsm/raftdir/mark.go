package raftdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// mark is how the log ended when it was closed. A log that now ends before that is
// not the one that was closed: it was replaced by a copy, or its record of the last
// write was damaged. After a kill there is no mark, and the log is taken as it is.
type mark struct {
	Index       uint64 `json:"index"` // of the last entry, 0 if there was none
	Term        uint64 `json:"term"`  // of that entry
	CurrentTerm uint64 `json:"currentTerm"`
	Sum         uint32 `json:"sum"` // CRC-32C of the others
}

func (m mark) sum() uint32 {
	return crc32.Checksum(fmt.Appendf(nil, "%d %d %d", m.Index, m.Term, m.CurrentTerm), crcTable)
}

func markPath(logPath string) string { return filepath.Join(filepath.Dir(logPath), "closed") }

// readMark gives nil if there is none. One that is damaged says nothing, so that
// the log alone decides.
func readMark(logPath string) *mark {
	b, err := os.ReadFile(markPath(logPath))
	var m mark
	if err != nil || json.Unmarshal(b, &m) != nil || m.Sum != m.sum() {
		return nil
	}
	return &m
}

// removeMark is for the moment when the log may move on, and back.
func removeMark(logPath string) error {
	path := markPath(logPath)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil { // whatever it is
		err = os.RemoveAll(path)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// mark tells how the log ends now.
func (l *Log) mark() (m mark, err error) {
	err = l.guard("read", func() error {
		if m.Index, err = l.bolt.LastIndex(); err != nil {
			return err
		}
		if m.Index > 0 {
			var e raft.Log
			if err := l.bolt.GetLog(m.Index, &e); err != nil {
				return err
			}
			m.Term = e.Term
		}
		m.CurrentTerm, err = l.currentTerm()
		return err
	})
	m.Sum = m.sum()
	return m, err
}

// writeMark is for the end. Without it only less is noticed at the next start.
func (l *Log) writeMark() {
	if l.failed.Load() != nil {
		return
	}
	m, err := l.mark()
	if err != nil {
		return
	}
	if b, err := json.Marshal(m); err == nil {
		_ = durable.Replace(markPath(l.path), append(b, '\n'), 0o600)
	}
}

// compare returns what the log has lost since it was closed.
func (m mark) compare(now mark) error {
	switch {
	case now.CurrentTerm < m.CurrentTerm:
		return fmt.Errorf("its term is %d, and was %d when it was closed: it is older, or its last write was lost", now.CurrentTerm, m.CurrentTerm)
	case now.Index < m.Index || now.Term < m.Term:
		return fmt.Errorf("it ends with entry %d of term %d, and with %d of term %d when it was closed: it is older, or its last write was lost", now.Index, now.Term, m.Index, m.Term)
	}
	return nil
}
