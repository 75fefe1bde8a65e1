package raftdir

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// Same says whether e and o are one epoch.
func (e Epoch) Same(o Epoch) bool { return e.Number == o.Number && e.ID == o.ID }

// After says whether e is later than o. Of two that began as the same number, as
// when one snapshot was restored twice, the one that began later is.
func (e Epoch) After(o Epoch) bool {
	switch {
	case e.Number != o.Number:
		return e.Number > o.Number
	case !e.At.Equal(o.At):
		return e.At.After(o.At)
	}
	return e.ID > o.ID
}

// Next is an epoch after e that begins now on the server of that name.
func (e Epoch) Next(cause Cause, by string, now time.Time, followers ...string) Epoch {
	return Epoch{Number: max(e.Number, 1) + 1, ID: strings.ToLower(rand.Text()[:16]), Cause: cause,
		At: now.UTC().Truncate(time.Millisecond), By: by, Followers: followers}
}

// String names the epoch in messages.
func (e Epoch) String() string {
	if e.Number <= 1 {
		return "epoch 1"
	}
	return fmt.Sprintf("epoch %d (by %s on %s, %s)", e.Number, e.Cause, e.By, e.At.Format(time.RFC3339))
}

// Follows says whether the member with that ID may give up the log of an earlier
// epoch for this one by itself.
func (e Epoch) Follows(id string) bool {
	return e.Cause == Restored || slices.Contains(e.Followers, id)
}

// Encode is the value of EpochKey and the content of the file.
func (e Epoch) Encode() []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings, numbers and a time of this century
	}
	return append(b, '\n')
}

// DecodeEpoch reads what Encode gave; nothing at all is the first epoch.
func DecodeEpoch(b []byte) (Epoch, error) {
	if len(b) == 0 {
		return Epoch{Number: 1}, nil
	}
	var e Epoch
	err := json.Unmarshal(b, &e)
	if err == nil && e.Number == 0 {
		err = errors.New("it has no number")
	}
	if err != nil {
		return Epoch{}, fmt.Errorf("epoch of the log: %w", err)
	}
	return e, nil
}

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
	if err == nil && len(b) == 0 {
		err = errors.New("it is empty")
	}
	var e Epoch
	if err == nil {
		err = durable.Open(b, &e)
	}
	if err == nil && e.Number == 0 {
		err = errors.New("it has no number")
	}
	if err != nil {
		return Epoch{}, fmt.Errorf("%w: %s: %w", ErrDamaged, epochPath(dataDir), reason(err))
	}
	return e, nil
}

// SaveEpoch writes the epoch of the log in a data dir.
func SaveEpoch(dataDir string, e Epoch) error {
	b, err := durable.Seal(e)
	if err == nil {
		err = durable.Replace(epochPath(dataDir), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("epoch of the log: %w", err)
	}
	return nil
}

// A server on a restored snapshot asks the others that the snapshot knows, before
// it does anything, whether they are a living cluster. A file says that it has
// not done so yet.

func unaskedPath(dataDir string) string { return filepath.Join(Path(dataDir), "unasked") }

// SetUnasked says, or no longer says, that the others are to be asked.
func SetUnasked(dataDir string, unasked bool) error { return note(unaskedPath(dataDir), unasked) }

// While a snapshot is restored into a data dir that is there already, a file says
// so: no server may start in it.

func restoringPath(dataDir string) string { return filepath.Join(dataDir, "restoring") }

// SetRestoring says, or no longer says, that a restore into a data dir is under
// way.
func SetRestoring(dataDir string, under bool) error { return note(restoringPath(dataDir), under) }

// Restoring says whether a restore into a data dir was interrupted, or is under
// way.
func Restoring(dataDir string) bool {
	_, err := os.Stat(restoringPath(dataDir))
	return err == nil
}

// note makes or removes an empty file, for good.
func note(path string, there bool) error {
	if there {
		return durable.Replace(path, nil, 0o600)
	}
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Unasked says whether the others are to be asked.
func Unasked(dataDir string) bool {
	_, err := os.Stat(unaskedPath(dataDir))
	return err == nil
}
