package raftdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// begin makes a snapshot that is sealed, leaves nothing behind when it fails, and,
// if another member sends it, is complete only when Check has read all of it.
func (s *Snapshots) begin(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport, sent bool) (raft.SnapshotSink, error) {
	inner, err := s.FileSnapshotStore.Create(v, index, term, c, ci, t)
	if err != nil {
		return nil, errors.Join(err, s.sweep())
	}
	k := &sink{SnapshotSink: inner, s: s, name: inner.ID() + tmpSuffix, from: taken}
	if k.file, err = os.OpenFile(filepath.Join(s.dir, k.name, stateFile), os.O_RDWR, 0); err != nil {
		_ = inner.Cancel() // what it does not remove, sweep does
		return nil, errors.Join(err, s.sweep())
	}
	k.pace = durable.NewPace(k.file)
	if sent {
		k.from = received
	}
	s.mu.Lock()
	s.open[k.name] = true
	s.mu.Unlock()
	if sent && s.Check != nil {
		r, w := io.Pipe()
		k.pipe, k.checked = w, make(chan error, 1)
		go func() {
			err := s.Check(r)
			r.CloseWithError(errUnwanted)
			k.checked <- err
		}()
	}
	return k, nil
}

// errUnwanted is what a write gets when Check has refused what came before.
var errUnwanted = errors.New("the snapshot was refused")

type sink struct {
	raft.SnapshotSink
	s    *Snapshots
	name string
	from origin
	size int64
	over bool

	// All servers take a snapshot at about the same entry. Without pace, logs on the
	// same disk would wait for all of it at once.
	file *os.File
	pace *durable.Pace

	pipe    *io.PipeWriter // to Check; nil if there is none
	checked chan error
}

func (k *sink) Write(b []byte) (int, error) {
	if k.pipe != nil {
		if _, err := k.pipe.Write(b); err != nil {
			return 0, k.refused()
		}
	}
	n, err := k.SnapshotSink.Write(b)
	k.size += int64(n)
	if err == nil {
		err = k.pace.Wrote(n)
	}
	return n, err
}

// refused is what Check has against the snapshot, nil if it is whole.
func (k *sink) refused() error {
	if k.pipe == nil {
		return nil
	}
	k.pipe.Close()
	err := <-k.checked
	k.checked <- err
	if err != nil {
		return fmt.Errorf("what another server sent is no snapshot: %w", err)
	}
	return nil
}

func (k *sink) Close() error {
	if k.over {
		return nil
	}
	err := k.refused()
	if err == nil {
		err = k.s.writeSeal(filepath.Join(k.s.dir, k.name), k.size, k.from)
	}
	if err != nil {
		return errors.Join(err, k.Cancel())
	}
	return k.end(k.SnapshotSink.Close())
}

func (k *sink) Cancel() error {
	if k.over {
		return nil
	}
	if k.pipe != nil {
		k.pipe.CloseWithError(io.ErrUnexpectedEOF)
	}
	_ = k.SnapshotSink.Cancel() // what it does not remove, end does
	return k.end(nil)
}

// end removes what is left if the snapshot was not completed.
func (k *sink) end(err error) error {
	k.over = true
	k.file.Close()
	k.s.mu.Lock()
	delete(k.s.open, k.name)
	k.s.mu.Unlock()
	return errors.Join(err, k.s.sweep())
}
