package binary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors that a guard is started with: a pidfd of the process that it
// watches, and where it says that it does.
const (
	guardMain  = 3
	guardReady = 4
)

// How long things may take that have nothing to do with the new program.
const (
	stopLimit  = time.Minute      // until the old program has stopped and the new one runs
	readyLimit = 20 * time.Second // until a guard watches
	look       = 100 * time.Millisecond
)

// Tests shorten these.
var (
	killAfter = 10 * time.Second // from SIGTERM to SIGKILL
	// aside is how long a guard lets others start skiff, where it does not know
	// of any that would.
	aside = 2 * time.Second
)

// startGuard starts a program as the guard of this process and returns when it
// watches, with a channel that is closed when it ends. It survives the execution
// of the new program.
func (e *Executor) startGuard(program string) (<-chan struct{}, error) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	self := os.NewFile(uintptr(pidfd), "self")
	defer self.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(program, append(append(slices.Clone(e.c.GuardArgs), e.store.dir), e.c.Args...)...)
	cmd.Args[0] = e.c.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{guardMain - 3: self, guardReady - 3: w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); _ = cmd.Wait() }()
	if err = r.SetReadDeadline(time.Now().Add(readyLimit)); err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if err != nil {
		err = fmt.Errorf("the guard did not begin to watch: %w", err)
		if kerr := cmd.Process.Kill(); kerr != nil && !errors.Is(kerr, os.ErrProcessDone) {
			err = errors.Join(err, kerr)
		}
		return nil, err
	}
	return gone, nil
}

// guard watches a process during a trial.
type guard struct {
	journal journal
	store   *Store
	log     *slog.Logger
	args    []string
	pidfd   *os.File
	main    process
	self    process
}

// Guard watches the process that started it, until the trial of the new program is
// over. If that process ends, or the time is over, it puts the old program back,
// and gives an *Exec to run it in place of itself, unless somebody else starts
// skiff. args are those of the process, its name first.
func Guard(ctx context.Context, dir string, args []string, log *slog.Logger) error {
	main, err := processOf(guardMain)
	if err != nil && !errors.Is(err, unix.ESRCH) { // else it has ended already
		return fmt.Errorf("this command is for skiff itself, to watch over the trial of a new program: %w", err)
	}
	unix.CloseOnExec(guardMain)
	unix.CloseOnExec(guardReady)
	st, err := OpenStore(StoreConfig{Dir: dir})
	if err != nil {
		return err
	}
	g := &guard{journal: journal{dir}, store: st, log: log, args: args, pidfd: os.NewFile(guardMain, "main"), main: main}
	defer g.pidfd.Close()
	if g.self, err = findProcess(os.Getpid()); err != nil {
		return err
	}
	if err := g.begin(os.NewFile(guardReady, "ready")); err != nil {
		return err
	}
	return g.run(ctx)
}

// begin says in the journal, and then to ready, that this guard watches. Who asked
// for it may have ended by then: a guard is for that.
func (g *guard) begin(ready *os.File) error {
	if err := g.journal.update(func(s *state) error {
		if s.Trial == nil {
			return errors.New("there is no trial to watch")
		}
		s.Trial.Guard = g.self
		return nil
	}); err != nil {
		return errors.Join(err, ready.Close())
	}
	_, err := ready.Write([]byte("."))
	if errors.Is(err, unix.EPIPE) {
		err = nil
	}
	return errors.Join(err, ready.Close())
}

// mine gives the trial while it is this guard's business.
func (g *guard) mine() (*trial, error) {
	s, err := g.journal.read()
	if err != nil || s.Trial == nil || s.Trial.Guard != g.self {
		return nil, err
	}
	return s.Trial, nil
}

func (g *guard) run(ctx context.Context) error {
	executed := false
	begun := time.Now()
	for ctx.Err() == nil {
		dead := ended(g.pidfd, look)
		t, err := g.mine()
		if err != nil {
			g.log.Error("guard", "error", err) // it may be readable again
			continue
		}
		if t == nil {
			return nil
		}
		if t.Executed && !executed {
			executed, begun = true, time.Now()
		}
		switch {
		case t.Returning != "": // decided by a guard that was killed
			return g.goBack(t.Returning)
		case dead && t.Stopped:
			return nil
		case dead && executed:
			return g.goBack(fmt.Sprintf("version %s ended before it was healthy", t.To.Version))
		case dead:
			return g.goBack("skiff ended before the new program ran")
		case executed && time.Since(begun) > t.Limit:
			return g.goBack(fmt.Sprintf("version %s was not healthy after %s", t.To.Version, t.Limit))
		case !executed && time.Since(begun) > stopLimit:
			return g.goBack(fmt.Sprintf("skiff had not stopped after %s", stopLimit))
		}
	}
	return nil
}

// goBack puts the old program in place before it ends the new one: whoever starts
// skiff then starts the old one.
func (g *guard) goBack(why string) error {
	t, err := g.journal.goBack(g.store, g.log, why, func(t *trial) bool { return t.Guard == g.self })
	if t == nil {
		return err // it became healthy this moment
	}
	path := t.Path
	if err != nil { // the next start tries again; what runs here is the old program
		g.log.Error("the old program cannot be put back", "error", err)
		path = "/proc/self/exe"
	}
	g.end()
	step("ended")
	if supervised(g.main.PID) || g.startedByOthers() {
		return nil
	}
	return &Exec{Path: path, Args: g.args}
}

// end ends the watched process.
func (g *guard) end() {
	for _, s := range []struct {
		unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, killAfter}, {unix.SIGKILL, time.Minute}} {
		if ended(g.pidfd, 0) {
			return
		}
		if err := unix.PidfdSendSignal(int(g.pidfd.Fd()), s.Signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			g.log.Error("end the new program", "error", err)
		}
		if ended(g.pidfd, s.wait) {
			return
		}
	}
}

// startedByOthers tells whether another skiff has the data directory, as when a
// process supervisor was faster.
func (g *guard) startedByOthers() bool {
	for end := time.Now().Add(aside); time.Now().Before(end); time.Sleep(look) {
		// Trying the lock would keep the other one out.
		b, err := os.ReadFile(filepath.Join(filepath.Dir(g.journal.dir), "lock"))
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid != g.main.PID {
			if p, err := findProcess(pid); err == nil && p.lives() {
				return true
			}
		}
	}
	return false
}
