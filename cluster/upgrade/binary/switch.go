package binary

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// defaultTrial is how long a program has where the order does not say.
const defaultTrial = time.Minute

// change makes ready what runs next and asks for it with an *Exec. The order of
// its steps: what is needed to go back is on disk, the trial is written down, a
// guard watches, and only then the file changes.
func (e *Executor) change(o order.Order, to program) (err error) {
	there, err := e.inPlace(to)
	if err != nil {
		return err
	}
	if err := e.keepOwn(); err != nil {
		return err
	}
	step("kept")
	if !there {
		if err := e.place.prepare(e.store.Path(to.SHA256), to.SHA256); err != nil {
			return err
		}
	}
	step("prepared")
	t := &trial{From: e.self, To: to, Path: e.place.path, Limit: o.Trial}
	if t.Limit <= 0 {
		t.Limit = defaultTrial
	}
	if err := e.tryOut(t, there); err != nil {
		return e.giveUp(err)
	}
	return &Exec{Path: t.Path, Args: e.c.Args, leave: e.leave, undo: e.undo}
}

func (e *Executor) tryOut(t *trial, there bool) error {
	if err := e.journal.update(func(s *state) error {
		s.Trial = t
		return nil
	}); err != nil {
		return err
	}
	step("written")
	if err := e.nameGuard(t.From.SHA256); err != nil {
		return err
	}
	step("named")
	if _, err := e.startGuard("/proc/self/exe"); err != nil {
		return err
	}
	step("guarded")
	if there {
		return nil
	}
	err := e.journal.update(func(s *state) error {
		if s.Trial == nil || s.Trial.Returning != "" {
			return errors.New("the guard has taken the upgrade back already")
		}
		return e.place.change()
	})
	step("changed")
	return err
}

// inPlace tells whether the file holds that program already, as when it was put
// there by hand. A third one is nobody's to replace.
func (e *Executor) inPlace(to program) (bool, error) {
	if err := e.place.check(0, e.store.margin); err != nil {
		return false, err
	}
	have, err := e.place.sum()
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: %w", ErrPlace, err)
	case have == to.SHA256:
		return true, nil
	case have != e.self.SHA256:
		return false, fmt.Errorf("%w: %s holds another program than the one that runs: restart skiff first, or put version %s back there", ErrPlace, e.place.path, e.c.Version)
	}
	b, _ := e.store.Get(to.SHA256)
	return false, room(filepath.Dir(e.place.path), b.Size+e.store.margin)
}

// keepOwn puts this program into the store.
func (e *Executor) keepOwn() error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("keep the present program: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("keep the present program: %w", err)
	}
	b := order.Binary{Version: e.c.Version, SHA256: e.self.SHA256, Size: st.Size(), Platform: Platform}
	if err := e.store.keepRunning(b, f); err != nil {
		return fmt.Errorf("keep the present program: %w", err)
	}
	return nil
}

// nameGuard gives the old program a name that is the same in every trial.
func (e *Executor) nameGuard(sum string) error {
	next := e.journal.guard() + ".new"
	if err := remove(next); err != nil {
		return err
	}
	if err := os.Symlink(sum, next); err != nil {
		return err
	}
	if err := os.Rename(next, e.journal.guard()); err != nil {
		return err
	}
	return durable.SyncDir(e.store.dir)
}

// giveUp takes back what was made ready, because of an error; nothing has changed
// then, and the guard ends.
func (e *Executor) giveUp(why error) error {
	err := e.journal.update(func(s *state) error {
		if s.Trial == nil {
			return nil
		}
		if err := e.place.back(e.store, s.Trial.From.SHA256); err != nil {
			return err
		}
		s.Trial = nil
		return nil
	})
	return errors.Join(why, err, e.tidy())
}

// leave tells the guard that from now on the new program has to prove itself.
func (e *Executor) leave() {
	if err := e.journal.update(func(s *state) error {
		if s.Trial != nil {
			s.Trial.Executed = true
			s.Trial.count(startID(os.Getpid()))
		}
		return nil
	}); err != nil {
		e.log.Error("the state of upgrades is not saved", "error", err)
	}
}

// undo is for a process that has ended its parts and cannot execute the new
// program: the next start, of the old one, says so.
func (e *Executor) undo(why error) error {
	_, err := e.journal.goBack(e.store, e.log, why.Error(), func(*trial) bool { return true })
	return err
}

// destination is the program that a Return asks for: the one from before, if the
// present one is that of the order.
func (e *Executor) destination(s state, o order.Order) (program, error) {
	if o.Binary.SHA256 != "" && o.Binary.SHA256 != e.self.SHA256 {
		return e.self, nil
	}
	if s.Previous == "" {
		return program{}, fmt.Errorf("%w: there is none from before on this host", ErrMissing)
	}
	b, ok := e.store.Get(s.Previous)
	if !ok {
		return program{}, fmt.Errorf("%w: the one from before, %s", ErrMissing, s.Previous)
	}
	return program{b.SHA256, b.Version}, nil
}
