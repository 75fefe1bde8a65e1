package raftdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// EpochKey is where the replicated state has its Epoch.
const EpochKey = "/skiff/epoch"

// Epoch names one history of the log. A cluster begins with the first (Number 1,
// or no Epoch at all); a restore from a snapshot and a recovery from lost quorum
// begin another, which does not contain all that the one before acknowledged.
// Logs of different epochs have nothing to do with each other.
type Epoch struct {
	Number uint64    `json:"number"` // larger is later
	ID     string    `json:"id"`     // random; empty in the first
	Cause  Cause     `json:"cause,omitempty"`
	At     time.Time `json:"at,omitzero"`
	By     string    `json:"by,omitempty"` // name of the server that it began on
	// Followers are the IDs of members that may give up their own log for it by
	// themselves. After a restore that is everybody.
	Followers []string `json:"followers,omitempty"`
}

// Cause says why an Epoch began.
type Cause string

// The causes.
const (
	Restored  Cause = "restore"
	Recovered Cause = "recover"
)

func epochPath(dataDir string) string { return filepath.Join(Path(dataDir), "epoch") }

// LoadEpoch is the epoch of the log in a data dir; the first if nothing is
// written.
func LoadEpoch(dataDir string) (Epoch, error) {
	b, err := os.ReadFile(epochPath(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return Epoch{Number: 1}, nil
	}
	var e Epoch
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err == nil && e.Number == 0 {
		err = errors.New("it has no number")
	}
	if err != nil {
		return Epoch{}, fmt.Errorf("epoch of the log (%s): %w", epochPath(dataDir), err)
	}
	return e, nil
}

// SaveEpoch writes the epoch of the log in a data dir.
func SaveEpoch(dataDir string, e Epoch) error {
	b, err := json.Marshal(e)
	if err == nil {
		err = durable.Replace(epochPath(dataDir), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("epoch of the log: %w", err)
	}
	return nil
}
