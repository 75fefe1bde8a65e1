package binary

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"syscall"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// Exec is the error of a part that asks main to run another program in place of
// this process, once all parts have ended.
type Exec struct {
	Path string
	Args []string
	// leave is told just before this program gives way, undo goes back when Path
	// cannot be executed.
	leave func()
	undo  func(why error) error
}

func (e *Exec) Error() string { return "this process goes on as " + e.Path }

// Run only returns if it fails. The process keeps its number, environment and
// standard files.
func (e *Exec) Run() error {
	if e.leave != nil {
		e.leave()
	}
	err := fmt.Errorf("run %s: %w", e.Path, syscall.Exec(e.Path, e.Args, os.Environ()))
	if e.undo == nil {
		return err
	}
	if uerr := e.undo(err); uerr != nil {
		err = errors.Join(err, uerr)
	}
	return errors.Join(err, syscall.Exec("/proc/self/exe", e.Args, os.Environ()))
}

// Config of an Executor.
type Config struct {
	Store   *Store
	Version string // of this program
	// Args of this process, the name first; those with which programs are started
	// in its place.
	Args []string
	// GuardArgs make a skiff call Guard with the folder and the arguments that
	// follow.
	GuardArgs []string
	Logger    *slog.Logger
}

// New is called by a skiff that starts, when it has the lock of its data
// directory and before it opens anything else. It counts the start when this is a
// program on trial. The error is an *Exec when another program is to run: the
// trial was decided against this one.
func New(c Config) (*Executor, error) {
	path, err := ownPath()
	if err != nil {
		return nil, fmt.Errorf("the file this program is in: %w", err)
	}
	e := &Executor{c: c, log: c.Logger, store: c.Store, journal: journal{c.Store.dir}, place: place{path}}
	s, err := e.journal.read()
	if err != nil {
		e.log.Error("the state of upgrades cannot be read: it is begun anew", "error", err)
		if s, err = e.journal.heal(); err != nil {
			return nil, fmt.Errorf("state of upgrades: %w", err)
		}
	}
	if s.Trial == nil && s.Order.ID == "" {
		return e, nil
	}
	if s.Trial == nil {
		return e, e.tidy()
	}
	if e.self.SHA256, err = Sum("/proc/self/exe"); err != nil {
		return nil, fmt.Errorf("read the own program: %w", err)
	}
	e.self.Version = c.Version
	return e, e.begin()
}

// begin goes on with a trial.
func (e *Executor) begin() error {
	var decided *trial
	if err := e.journal.update(func(s *state) error {
		t := s.Trial
		switch {
		case t == nil: // the guard was faster
		case e.self.SHA256 == t.To.SHA256:
			if t.count(startID(os.Getpid())); t.Returning != "" {
				decided = t
				return nil
			}
			t.Stopped = false
			e.trial = t
			e.log.Info("this program is on trial", "version", t.To.Version, "from", t.From.Version, "for", t.Limit, "start", t.Attempts)
		case e.self.SHA256 == t.From.SHA256:
			e.returned(s)
		default:
			s.end(order.Failed, e.self, "another program was put in place by hand meanwhile")
		}
		return nil
	}); err != nil { // as on a full disk; see settle
		e.log.Error("the state of upgrades is not saved", "error", err)
	}
	step("begun")
	if decided == nil {
		return e.tidy()
	}
	t, err := e.journal.goBack(e.store, e.log, decided.Returning, func(*trial) bool { return true })
	if err != nil {
		e.log.Error("the program from before cannot be put back: this one goes on", "error", err)
		return nil
	}
	if t == nil {
		return nil
	}
	return &Exec{Path: t.Path, Args: e.c.Args}
}

// settle ends a trial that begin could not end.
func (e *Executor) settle() error {
	if s, err := e.journal.read(); err != nil || s.Trial == nil {
		return err
	}
	return e.begin()
}

// count notes a start of the new program; each only once, whoever sees it first.
// It decides against a program that was started too often.
func (t *trial) count(id string) {
	if id == t.Counted || t.Returning != "" {
		return
	}
	if t.Attempts >= maxAttempts {
		t.Returning = fmt.Sprintf("version %s was started %d times and did not become healthy", t.To.Version, t.Attempts)
		return
	}
	t.Attempts++
	t.Counted = id
}

// returned ends a trial in the program from before.
func (e *Executor) returned(s *state) {
	t, phase, why := s.Trial, order.Failed, "the switch was interrupted before the new program ran"
	switch {
	case t.Returning != "":
		phase, why = order.Returned, t.Returning
	case t.Executed: // the disk was full, or somebody was faster than the guard
		phase, why = order.Returned, fmt.Sprintf("version %s ended, or was ended, before it was healthy", t.To.Version)
	}
	if err := (place{t.Path}).back(e.store, t.From.SHA256); err != nil {
		why += fmt.Sprintf("; and %s does not hold version %s, though that runs: %v", t.Path, t.From.Version, err)
	}
	e.log.Error("the upgrade was taken back", "version", t.To.Version, "why", why)
	s.end(phase, e.self, why)
}

// tidy removes what only a trial needs, when there is none.
func (e *Executor) tidy() error {
	s, err := e.journal.read()
	if err != nil || s.Trial != nil {
		return err
	}
	if err := errors.Join(e.place.tidy(), remove(e.journal.guard())); err != nil {
		e.log.Warn("files of the upgrade are left behind", "error", err)
	}
	return nil
}

// startID names a start: systemd's name for it, which its helpers know too, or
// else the process.
func startID(pid int) string {
	if id := os.Getenv("INVOCATION_ID"); id != "" && supervised(pid) {
		return id
	}
	p, err := findProcess(pid)
	if err != nil {
		return "pid " + strconv.Itoa(pid)
	}
	return fmt.Sprintf("%s %d %d", p.Boot, p.PID, p.Start)
}

// BeforeStart is for systemd to run, as the program from before, before each start
// of skiff: it counts starts of a program that cannot even do that itself, and puts
// the one from before back. dir is that of the Store.
func BeforeStart(dir string, log *slog.Logger) error {
	st, err := OpenStore(StoreConfig{Dir: dir})
	if err != nil {
		return err
	}
	j := journal{dir}
	why := ""
	if err := j.update(func(s *state) error {
		if s.Trial != nil {
			s.Trial.count(startID(os.Getpid()))
			why = s.Trial.Returning
		}
		return nil
	}); err != nil || why == "" {
		return err
	}
	_, err = j.goBack(st, log, why, func(*trial) bool { return true })
	return err
}

// supervised tells whether systemd started the process and will start it again.
func supervised(pid int) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Getenv("INVOCATION_ID") == "" {
		return false
	}
	// Descendants of a service have its variables too. systemd before 248 does
	// not say which process it started.
	own, said := os.LookupEnv("SYSTEMD_EXEC_PID")
	return !said || own == strconv.Itoa(pid)
}
