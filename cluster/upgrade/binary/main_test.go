package binary

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// The programs of these tests are this test binary with a line behind its end that
// says what it is and how it behaves: a skiff small enough to be killed at each
// step.
type character struct {
	Version string
	// Mode is healthy, ill (never healthy), exits (when it serves), crashes
	// (before it looks at anything), deaf (like ill, and does not end when asked),
	// hangs or lies (when asked for its version).
	Mode string
	// MinLevel and MaxLevel are what it says.
	MinLevel, MaxLevel int
}

const trailer = "\n#skiff-of-a-test "

func TestMain(m *testing.M) {
	if c, ok := ownCharacter(); ok {
		if err := c.run(); err != nil {
			fmt.Fprintln(os.Stderr, c.Version+": "+err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func ownCharacter() (c character, ok bool) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return c, false
	}
	defer f.Close()
	if _, err := f.Seek(-256, io.SeekEnd); err != nil {
		return c, false
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return c, false
	}
	_, text, found := strings.Cut(string(b), trailer)
	return c, found && json.Unmarshal([]byte(text), &c) == nil
}

// write makes the program file.
func (c character) write(t *testing.T, path string) order.Binary {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	all := append(append(self, trailer...), text...)
	all = append(all, bytes.Repeat([]byte(" "), max(0, 256-len(trailer)-len(text)))...)
	// A process that another test starts meanwhile would have the file open, and the
	// kernel does not execute what somebody can write (ETXTBSY).
	syscall.ForkLock.RLock()
	err = os.WriteFile(path, all, 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := Sum(path)
	if err != nil {
		t.Fatal(err)
	}
	return order.Binary{Version: c.Version, SHA256: sum, Size: int64(len(all)), Platform: Platform, MinLevel: c.MinLevel, MaxLevel: c.MaxLevel}
}

func (c character) run() error {
	if len(os.Args) < 2 {
		return errors.New("no command")
	}
	aside, killAfter = 300*time.Millisecond, time.Second
	switch os.Args[1] {
	case "version":
		return c.say()
	case "guard":
		crashAt("guard")
		err := Guard(context.Background(), os.Args[2], os.Args[3:], slog.New(slog.NewTextHandler(os.Stderr, nil)).With("guard", os.Getpid()))
		return finish(err)
	case "before-start":
		return BeforeStart(os.Args[2], slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case "serve":
		crashAt("serve")
		return finish(c.serve(os.Args[2]))
	}
	return fmt.Errorf("no command %q", os.Args[1])
}

func finish(err error) error {
	var x *Exec
	if errors.As(err, &x) {
		return x.Run()
	}
	return err
}

func (c character) say() error {
	switch c.Mode {
	case "hangs":
		time.Sleep(time.Hour)
	case "lies":
		c.Version += "-or-so"
	case "breaks":
		return errors.New("cannot work here")
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"skiff": c.Version, "platform": Platform, "minLevel": c.MinLevel, "maxLevel": c.MaxLevel})
}

// crashAt ends this process, of the part (serve or guard), like kill -9 at the
// step that SKIFF_TEST_CRASH names: part/version/step. With power, as a power cut
// does, it ends the other one of serve and guard too.
func crashAt(part string) {
	want := os.Getenv("SKIFF_TEST_CRASH")
	own, _ := ownCharacter()
	step = func(name string) {
		if f := os.Getenv("SKIFF_TEST_STEPS"); f != "" {
			appendLine(f, part+"/"+own.Version+"/"+name)
		}
		at, power := strings.CutSuffix(want, "+power")
		if at != part+"/"+own.Version+"/"+name {
			return
		}
		// Once for all.
		once := filepath.Join(filepath.Dir(os.Getenv("SKIFF_TEST_STEPS")), "crashed")
		f, err := os.OpenFile(once, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return
		}
		f.Close()
		if power {
			_ = unix.Kill(0, unix.SIGKILL) // all of this process group
		}
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

func appendLine(path, line string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(f, line)
		f.Close()
	}
}

// serve is a member with the data directory dir: its leader is made of the files
// beside it.
func (c character) serve(dir string) error {
	if c.Mode == "crashes" {
		return errors.New("crashes")
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if c.Mode == "deaf" {
		signal.Ignore(unix.SIGTERM)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("two members on one data directory: %w", err)
	}
	_ = lock.Truncate(0)
	_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	store, err := OpenStore(StoreConfig{Dir: Dir(dir), Margin: 1})
	if err != nil {
		return err
	}
	e, err := New(Config{Store: store, Version: c.Version, Args: os.Args, GuardArgs: []string{"guard"}, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("version", c.Version)})
	if err != nil {
		return err
	}
	appendLine(filepath.Join(dir, "starts"), c.Version)
	if c.Mode == "exits" {
		return errors.New("exits")
	}
	healthy := make(chan struct{})
	if c.Mode == "healthy" {
		close(healthy)
	}
	changed := make(chan struct{})
	go func() {
		for ; ; time.Sleep(20 * time.Millisecond) {
			changed <- struct{}{}
		}
	}()
	err = e.Run(ctx, healthy, files{dir}, changed)
	if ctx.Err() != nil {
		e.Stopped()
		step("stopped")
		return nil
	}
	step("exec")
	return err
}

// files is a Leader made of files: order.json, reports, and the folder binaries.
type files struct{ dir string }

func (f files) Order(context.Context) (*order.Order, error) {
	b, err := os.ReadFile(filepath.Join(f.dir, "order.json"))
	if err != nil {
		return nil, nil
	}
	var o order.Order
	return &o, json.Unmarshal(b, &o)
}

func (f files) Report(_ context.Context, r order.Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	appendLine(filepath.Join(f.dir, "reports"), string(b))
	return nil
}

func (f files) Binary(_ context.Context, sum string, offset int64) (io.ReadCloser, error) {
	r, err := os.Open(filepath.Join(f.dir, "binaries", sum))
	if err == nil {
		_, err = r.Seek(offset, io.SeekStart)
	}
	return r, err
}
