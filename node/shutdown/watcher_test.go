package shutdown

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// bus runs a D-Bus daemon and returns its address.
func bus(t *testing.T) string {
	t.Helper()
	address, _ := busUntil(t)
	return address
}

func busUntil(t *testing.T) (address string, end func()) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	err := os.WriteFile(config, []byte(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path=`+filepath.Join(dir, "bus")+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--config-file", config, "--nofork", "--nopidfile", "--print-address")
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatalf("needs dbus-daemon: make deps: %v", err)
	}
	end = sync.OnceFunc(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
	t.Cleanup(end)
	line := make([]byte, 1024)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	address, _, _ = strings.Cut(strings.TrimSpace(string(line[:n])), ",")
	return address, end
}

// login1 is systemd-logind, as far as a Watcher sees it.
type login1 struct {
	t     *testing.T
	conn  *dbus.Conn
	props *prop.Properties
	// dropIn is read when systemd is asked to send SIGHUP, unless it is "".
	dropIn string

	mu    sync.Mutex
	locks [][2]*os.File // both ends of each inhibitor's pipe
	asked []string
}

func newLogin1(t *testing.T, address, dropIn string, delay time.Duration) *login1 {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	l := &login1{t: t, conn: conn, dropIn: dropIn}
	t.Cleanup(func() {
		conn.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, ends := range l.locks {
			ends[0].Close()
			ends[1].Close()
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(conn.Export(l, logindPath, logindManager))
	must(conn.ExportMethodTable(map[string]any{"KillUnit": l.killUnit}, systemdPath, systemdManager))
	l.props, err = prop.Export(conn, logindPath, prop.Map{logindManager: {
		"InhibitDelayMaxUSec":  {Value: uint64(delay / time.Microsecond)},
		"PreparingForShutdown": {Value: false},
	}})
	must(err)
	for _, name := range []string{logindName, systemdName} {
		if _, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// Inhibit is logind's.
func (l *login1) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locks = append(l.locks, [2]*os.File{r, w})
	l.asked = append(l.asked, strings.Join([]string{what, who, mode}, " "))
	return dbus.UnixFD(w.Fd()), nil // the bus sends a copy
}

func (l *login1) killUnit(unit, who string, signal int32) *dbus.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, fmt.Sprint(unit, " ", signal))
	if l.dropIn == "" {
		return nil
	}
	b, err := os.ReadFile(l.dropIn)
	if err != nil {
		return dbus.MakeFailedError(err)
	}
	var seconds uint64
	_, text, _ := strings.Cut(string(b), "InhibitDelayMaxSec=")
	if _, err := fmt.Sscan(text, &seconds); err != nil {
		return dbus.MakeFailedError(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond) // it does not do so at once
		l.props.SetMust(logindManager, "InhibitDelayMaxUSec", seconds*1e6)
	}()
	return nil
}

func (l *login1) prepare(begins bool) {
	l.t.Helper()
	l.props.SetMust(logindManager, "PreparingForShutdown", begins)
	if err := l.conn.Emit(logindPath, logindManager+".PrepareForShutdown", begins); err != nil {
		l.t.Fatal(err)
	}
}

// released waits until the n-th inhibitor was let go. It is called before that can
// be.
func (l *login1) released(n int) chan struct{} {
	l.t.Helper()
	l.mu.Lock()
	r, w := l.locks[n][0], l.locks[n][1]
	l.mu.Unlock()
	until(l.t, "the inhibitor has arrived", func() bool { return open(l.t, r) == 3 })
	w.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.ReadAll(r)
		close(done)
	}()
	return done
}

// open counts the ends of a pipe that this process has.
func open(t *testing.T, pipe *os.File) (n int) {
	t.Helper()
	var want, have unix.Stat_t
	if err := unix.Fstat(int(pipe.Fd()), &want); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if unix.Stat("/proc/self/fd/"+e.Name(), &have) == nil && have.Dev == want.Dev && have.Ino == want.Ino {
			n++
		}
	}
	return n
}

func (l *login1) requests() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.asked, ", ")
}

// machine is a node with pods that end when they are told to.
type machine struct {
	mu     sync.Mutex
	pods   []*v1.Pod
	ended  []string
	slow   map[types.UID]bool // these take for ever
	states []bool
}

func (m *machine) Pods() []*v1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pods)
}

func (m *machine) End(uid types.UID, grace int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = append(m.ended, fmt.Sprintf("%s %d", uid, grace))
	if !m.slow[uid] {
		m.pods = slices.DeleteFunc(m.pods, func(p *v1.Pod) bool { return p.UID == uid })
	}
}

func (m *machine) Changed(closing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states = append(m.states, closing)
}

func (m *machine) log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.ended, ", ")
}

func (m *machine) heard() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint(m.states)
}

func newMachine() *machine {
	of := func(name string, priority int32, grace int64) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{Priority: ptr.To(priority), TerminationGracePeriodSeconds: &grace}}
	}
	return &machine{pods: []*v1.Pod{of("dns", SystemCritical, 30), of("web", 0, 30), of("short", 0, 5)}, slow: map[types.UID]bool{}}
}

// run starts a Watcher and returns when it holds up shutdowns.
func run(t *testing.T, address, dropIn string, m *machine, periods Periods) *Watcher {
	t.Helper()
	w := New(Config{Periods: periods, Node: m, Logger: slog.New(slog.DiscardHandler), address: address, dropIn: dropIn})
	ready := make(chan struct{}, 10)
	w.ready = func() { ready <- struct{}{} }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	await(t, "the watcher is ready", ready)
	return w
}

func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("never: %s", what)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestShutdown(t *testing.T) {
	address, dropIn := bus(t), filepath.Join(t.TempDir(), "logind.conf.d", "99-skiff.conf")
	l := newLogin1(t, address, dropIn, 5*time.Second)
	m := newMachine()
	w := run(t, address, dropIn, m, Periods{{0, 20 * time.Second}, {SystemCritical, 10 * time.Second}})
	if got := l.requests(); got != "systemd-logind.service 1, shutdown skiff delay" {
		t.Errorf("asked of logind: %s", got)
	}
	if b, err := os.ReadFile(dropIn); err != nil || !strings.Contains(string(b), "[Login]\nInhibitDelayMaxSec=30\n") {
		t.Errorf("%s, %v", b, err)
	}
	gone := l.released(0)
	select {
	case <-gone:
		t.Fatal("nothing holds up a shutdown")
	case <-time.After(300 * time.Millisecond):
	}
	if w.Closing() || m.log() != "" {
		t.Errorf("before a shutdown: %s", m.log())
	}
	l.prepare(true)
	await(t, "the shutdown may go on", gone)
	if got := m.log(); got != "web 20, short 5, dns 10" && got != "short 5, web 20, dns 10" {
		t.Errorf("ended: %s", got)
	}
	if !w.Closing() || m.heard() != "[true]" {
		t.Errorf("closing %v, heard %s", w.Closing(), m.heard())
	}
	// It is taken back: the next one is held up again.
	l.prepare(false)
	until(t, "it is told", func() bool { return m.heard() == "[true false]" && !w.Closing() })
	until(t, "the next one is held up", func() bool { return strings.Count(l.requests(), "shutdown skiff") == 2 })
	m.mu.Lock()
	m.pods = newMachine().pods[:1]
	m.mu.Unlock()
	gone = l.released(1)
	l.prepare(true)
	await(t, "the second shutdown may go on", gone)
	if !strings.HasSuffix(m.log(), "dns 10, dns 10") {
		t.Errorf("ended: %s", m.log())
	}
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	address, dropIn := bus(t), filepath.Join(t.TempDir(), "99-skiff.conf")
	l := newLogin1(t, address, dropIn, time.Minute)
	m := newMachine()
	m.slow["web"], m.slow["dns"] = true, true
	run(t, address, dropIn, m, Periods{{0, time.Second}, {SystemCritical, time.Second}})
	if _, err := os.Stat(dropIn); !os.IsNotExist(err) || l.requests() != "shutdown skiff delay" {
		t.Errorf("logind waits long enough, and was changed: %s", l.requests())
	}
	gone := l.released(0)
	l.prepare(true)
	await(t, "the shutdown may go on", gone)
	if got := m.log(); !strings.HasSuffix(got, "dns 1") || strings.Count(got, ",") != 2 {
		t.Errorf("ended: %s", got)
	}
}

func TestShutdownThatIsTakenBackAtOnce(t *testing.T) {
	address, dropIn := bus(t), filepath.Join(t.TempDir(), "99-skiff.conf")
	l := newLogin1(t, address, dropIn, time.Hour)
	m := newMachine()
	m.slow["web"] = true
	w := run(t, address, dropIn, m, Periods{{0, time.Minute}, {SystemCritical, time.Minute}})
	l.prepare(true)
	until(t, "the pods are told", func() bool { return strings.Contains(m.log(), "web") })
	l.prepare(false)
	until(t, "it is taken back", func() bool { return !w.Closing() && strings.Count(l.requests(), "shutdown skiff") == 2 })
	if strings.Contains(m.log(), "dns") {
		t.Errorf("ended for a shutdown that was taken back: %s", m.log())
	}
}

func TestLogindThatDoesNotWaitSoLong(t *testing.T) {
	address := bus(t)
	l := newLogin1(t, address, "", 6*time.Second) // it does not care for the drop-in
	m := newMachine()
	run(t, address, filepath.Join(t.TempDir(), "99-skiff.conf"), m, Periods{{0, 20 * time.Second}, {SystemCritical, 10 * time.Second}})
	gone := l.released(0)
	l.prepare(true)
	await(t, "the shutdown may go on", gone)
	if got := m.log(); !strings.HasSuffix(got, "dns 2") || !strings.Contains(got, "web 4") {
		t.Errorf("ended: %s", got)
	}
}

func TestBusThatComesLaterAndGoes(t *testing.T) {
	m := newMachine()
	w := New(Config{Periods: Periods{{0, time.Second}}, Node: m, Logger: slog.New(slog.DiscardHandler), address: "unix:path=/nowhere/bus", dropIn: filepath.Join(t.TempDir(), "x")})
	if err := w.watch(t.Context()); err == nil || !strings.Contains(err.Error(), "no D-Bus system bus") {
		t.Errorf("without a bus: %v", err)
	}
	address, end := busUntil(t)
	w.cfg.address = address
	if err := w.watch(t.Context()); err == nil || !strings.Contains(err.Error(), "systemd-logind") {
		t.Errorf("a bus without logind: %v", err)
	}
	l := newLogin1(t, address, "", time.Minute)
	ready := make(chan struct{}, 1)
	w.ready = func() { ready <- struct{}{} }
	ended := make(chan error, 1)
	go func() { ended <- w.watch(context.Background()) }()
	await(t, "ready", ready)
	if New(Config{Node: m}).Run(context.Background()) != nil {
		t.Error("without periods there is nothing to do")
	}
	if m.heard() != "[]" {
		t.Errorf("heard %s", m.heard())
	}
	m.mu.Lock()
	m.slow["web"] = true
	m.mu.Unlock()
	l.prepare(true)
	until(t, "the pods are told", func() bool { return m.log() != "" })
	end() // in the middle of it
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), "has ended") || !w.Closing() {
			t.Errorf("closing %v: %v", w.Closing(), err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the end of the bus is not noticed")
	}
}
