package raftdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// The log belongs to one member: with another's ID it would wait for ever to be
// let into its own log. <data-dir>/raft/member keeps the ID beside it.
type ownerDoc struct {
	ID string `json:"id"`
}

func ownerPath(dataDir string) string { return filepath.Join(Path(dataDir), "member") }

// Owner is the ID of the member whose log the data dir has. It is "" if that is
// not known: of a new log, and when the file is lost or damaged.
func Owner(dataDir string) string {
	b, err := os.ReadFile(ownerPath(dataDir))
	var d ownerDoc
	if err != nil || durable.Open(b, &d) != nil {
		return ""
	}
	return d.ID
}

// CheckOwner refuses the ID of another member.
func CheckOwner(dataDir, id string) error {
	if st, err := os.Lstat(ownerPath(dataDir)); err == nil && !st.Mode().IsRegular() || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is not a file: move it away", ErrDamaged, ownerPath(dataDir))
	}
	if have := Owner(dataDir); have != "" && have != id {
		path := filepath.Join(dataDir, "node-id")
		return fmt.Errorf("%w: %s says %s, but the log is that of %s, says %s: put that ID back into %s", ErrDamaged, path, id, have, ownerPath(dataDir), path)
	}
	return nil
}

// SetOwner writes the ID, if that is not there already.
func SetOwner(dataDir, id string) error {
	if Owner(dataDir) == id {
		return nil
	}
	b, err := durable.Seal(ownerDoc{ID: id})
	if err != nil {
		return err
	}
	return durable.Replace(ownerPath(dataDir), b, 0o600)
}
