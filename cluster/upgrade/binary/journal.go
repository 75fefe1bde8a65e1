package binary

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// state is what a member knows of its orders. It is in one file, so that the
// outcome of a trial and the report on it are one step.
type state struct {
	Order    order.Order  `json:"order"`    // the last that was begun
	Report   order.Report `json:"report"`   // what was said last of it
	Sent     bool         `json:"sent"`     // a server has the report
	Previous string       `json:"previous"` // SHA-256 of the program that ran before
	Trial    *trial       `json:"trial,omitempty"`
}

// trial is a switch that is not over.
type trial struct {
	From, To program
	Path     string        // the file that skiff is started from
	Limit    time.Duration // how long the new program has
	// Returning is why the old program is put back; "" while the new one has its
	// chance.
	Returning string `json:",omitempty"`
	// Executed: the old program has done its part.
	Executed bool `json:",omitempty"`
	// Attempts counts the starts of the new program, Counted is the last one.
	Attempts int
	Counted  string
	// Stopped: skiff was asked to end; whoever starts it next goes on.
	Stopped bool `json:",omitempty"`
	Guard   process
}

// program is one that runs on this host.
type program struct{ SHA256, Version string }

// maxAttempts is how often a new program may be started that does not become
// healthy, when no guard was there to see it, as after power cuts.
const maxAttempts = 3

// journal is the file with the state. A lock keeps the parties apart: skiff, the
// guard, and skiff's next start.
type journal struct{ dir string }

func (j journal) path() string { return filepath.Join(j.dir, "state.json") }

// guard is the name of the old program during a trial, for those that only know
// the data directory, as systemd's unit.
func (j journal) guard() string { return filepath.Join(j.dir, "guard") }

// read gives the state as it is.
func (j journal) read() (s state, err error) {
	b, err := os.ReadFile(j.path())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", j.path(), err)
	}
	return s, nil
}

// update lets change work on the state and keeps what it made of it, also with
// an error.
func (j journal) update(change func(*state) error) error {
	return j.locked(func() error {
		s, err := j.read()
		if err != nil {
			return err
		}
		was, err := json.Marshal(s)
		if err != nil {
			return err
		}
		err = change(&s)
		now, merr := json.Marshal(s)
		if merr != nil || bytes.Equal(was, now) {
			return errors.Join(err, merr)
		}
		return errors.Join(err, durable.Replace(j.path(), now, 0o600))
	})
}

// locked keeps the other parties out.
func (j journal) locked(do func() error) error {
	f, err := os.OpenFile(filepath.Join(j.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the state of upgrades: %w", err)
	}
	defer f.Close()
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return do()
}

// heal moves a file aside that cannot be read: what it said of orders is lost,
// and whatever program is in place stays.
func (j journal) heal() (s state, err error) {
	err = j.locked(func() error {
		if s, err = j.read(); err == nil {
			return nil
		}
		s = state{}
		return os.Rename(j.path(), j.path()+".bad")
	})
	return s, err
}

// goBack decides a trial against the new program and puts the old one back. While
// still says no, or there is no trial, it gives nil and does nothing. The decision
// is on disk before the file changes, so that it is known why; on a full disk the
// file changes all the same.
func (j journal) goBack(st *Store, log *slog.Logger, why string, still func(*trial) bool) (*trial, error) {
	s, err := j.read()
	if err != nil {
		return nil, err
	}
	t := s.Trial
	err = j.update(func(s *state) error {
		if t = s.Trial; t == nil || !still(t) {
			t = nil
			return nil
		}
		if t.Returning == "" {
			t.Returning = why
			log.Error("the upgrade is taken back", "from", t.To.Version, "to", t.From.Version, "why", why)
		}
		return nil
	})
	if t == nil {
		return nil, err
	}
	if err != nil {
		log.Error("the state of upgrades is not saved", "error", err)
	}
	step("decided")
	err = j.locked(func() error {
		if s, err := j.read(); err == nil && s.Trial == nil {
			return nil // the old program runs already, and has seen to it
		}
		return place{t.Path}.back(st, t.From.SHA256)
	})
	step("back")
	return t, err
}

// step is called between the steps of a switch, for tests that end the process
// there.
var step = func(string) {}

// end is the outcome of the trial: nothing of it is left but the report.
func (s *state) end(phase order.Phase, running program, why string) {
	s.Trial = nil
	s.say(phase, running, why)
}

func (s *state) say(phase order.Phase, running program, why string) {
	s.Report = order.Report{Order: s.Order.ID, Phase: phase, Version: running.Version, Error: why, At: time.Now().UTC()}
	s.Sent = false
}
