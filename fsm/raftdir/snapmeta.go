package raftdir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// Raft's meta.json holds a checksum of the state beside it, and none of itself. A
// bit of its index would hide entries of the log, one of its configuration give a
// vote to a stranger. So its content is sealed in a file of its own, which becomes
// visible together with it.
const (
	metaFile = "meta.json"
	sealFile = "seal"
)

// origin says where a snapshot is from. The log of who has taken one reaches at
// least as far, unless it was emptied; that of who was sent one may not.
type origin string

const (
	taken    origin = "taken"
	received origin = "received"
)

// sealOf is the content of the seal: the origin, and a SHA-256 over that and all
// that Raft relies on.
func sealOf(m *raft.SnapshotMeta, from origin) []byte {
	h := sha256.New()
	fmt.Fprintln(h, from)
	fmt.Fprintf(h, "%d %q %d %d %d %d\n", m.Version, m.ID, m.Index, m.Term, m.ConfigurationIndex, m.Size)
	for _, s := range m.Configuration.Servers {
		fmt.Fprintf(h, "%d %q %q\n", s.Suffrage, s.ID, s.Address)
	}
	return fmt.Appendf(nil, "%s %s\n", from, hex.EncodeToString(h.Sum(nil)))
}

// verify looks at the newest snapshot. Raft would pass over one whose meta.json
// it can't read, and take an older one.
func (s *Snapshots) verify() error {
	id, err := s.newest()
	if err != nil || id == "" {
		return err
	}
	if err := s.verifyMeta(id); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, id, sealFile))
	s.Taken = err == nil && bytes.HasPrefix(b, []byte(taken))
	return err
}

// newest finds the newest snapshot by the names of the directories alone:
// term-index-milliseconds.
func (s *Snapshots) newest() (id string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return "", fmt.Errorf("open snapshots: %w", err)
	}
	var best [3]uint64
	for _, e := range entries {
		at, ok := position(e.Name())
		if ok && slices.Compare(at[:], best[:]) > 0 {
			id, best = e.Name(), at
		}
	}
	return id, nil
}

func position(name string) (at [3]uint64, ok bool) {
	n, err := fmt.Sscanf(name, "%d-%d-%d", &at[0], &at[1], &at[2])
	return at, err == nil && n == 3 && fmt.Sprintf("%d-%d-%d", at[0], at[1], at[2]) == name
}

// verifyMeta checks meta.json of a snapshot against its seal and its directory's
// name. The state is checked by whoever reads it.
func (s *Snapshots) verifyMeta(id string) error {
	damaged := func(name, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(s.dir, id, name), fmt.Errorf(format, args...))
	}
	b, err := os.ReadFile(filepath.Join(s.dir, id, metaFile))
	if err != nil {
		return damaged(metaFile, "%w", reason(err))
	}
	var all struct { // as Raft reads it
		raft.SnapshotMeta
		CRC []byte
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return damaged(metaFile, "%w", err)
	}
	m := all.SnapshotMeta
	at, _ := position(id)
	if m.ID != id || m.Index != at[1] || m.Term != at[0] {
		return damaged(metaFile, "it is of snapshot %q with index %d and term %d", m.ID, m.Index, m.Term)
	}
	seal, err := os.ReadFile(filepath.Join(s.dir, id, sealFile))
	if err != nil {
		return damaged(sealFile, "%w", reason(err))
	}
	from := taken
	if bytes.HasPrefix(seal, []byte(received)) {
		from = received
	}
	if !bytes.Equal(seal, sealOf(&m, from)) {
		return damaged(metaFile, "it does not match %s beside it", sealFile)
	}
	if st, err := os.Stat(s.File(id)); err != nil {
		return damaged(stateFile, "%w", reason(err))
	} else if st.Size() != m.Size {
		return damaged(stateFile, "it has %d bytes, should be %d", st.Size(), m.Size)
	}
	return nil
}

// reason is the error without the path.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// writeSeal is called when all of a snapshot's state is written, before Raft
// completes it.
func (s *Snapshots) writeSeal(tmp string, size int64, from origin) error {
	b, err := os.ReadFile(filepath.Join(tmp, metaFile)) // all but the size
	if err != nil {
		return err
	}
	var m raft.SnapshotMeta
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	m.Size = size
	if err := durable.Create(filepath.Join(tmp, sealFile), sealOf(&m, from), 0o600); err != nil {
		return err
	}
	return durable.SyncDir(tmp)
}

// sweep removes unfinished snapshots that nobody writes: those that failed for
// want of space would take what there is of it.
func (s *Snapshots) sweep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tmpSuffix) && !s.open[e.Name()] {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return fmt.Errorf("remove unfinished snapshot: %w", err)
			}
		}
	}
	return nil
}

const tmpSuffix = ".tmp"

// stateFile of a snapshot holds the state machine.
const stateFile = "state.bin"
