package shutdown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	logindName    = "org.freedesktop.login1"
	logindPath    = dbus.ObjectPath("/org/freedesktop/login1")
	logindManager = "org.freedesktop.login1.Manager"

	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdManager = "org.freedesktop.systemd1.Manager"

	// LogindDropIn is the file that raises how long logind waits.
	LogindDropIn = "/etc/systemd/logind.conf.d/99-skiff.conf"

	callTimeout   = 10 * time.Second
	reloadTimeout = 3 * time.Second
)

// errNoBus: this machine has no system bus.
var errNoBus = errors.New("there is no D-Bus system bus, and so no systemd-logind")

// logind is a connection to systemd-logind.
type logind struct {
	conn    *dbus.Conn
	dropIn  string
	signals chan *dbus.Signal
}

// connect opens the bus at address; "" is the system's.
func connect(ctx context.Context, address, dropIn string) (*logind, error) {
	var conn *dbus.Conn
	var err error
	if address == "" {
		conn, err = dbus.ConnectSystemBus(dbus.WithContext(ctx))
	} else {
		conn, err = dbus.Connect(address, dbus.WithContext(ctx))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNoBus
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to the D-Bus system bus: %w", err)
	}
	l := &logind{conn: conn, dropIn: dropIn, signals: make(chan *dbus.Signal, 16)}
	conn.Signal(l.signals)
	err = conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(logindManager), dbus.WithMatchMember("PrepareForShutdown"), dbus.WithMatchObjectPath(logindPath))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribing to shutdowns: %w", err), conn.Close())
	}
	return l, nil
}

func (l *logind) close() { _ = l.conn.Close() }

// inhibit holds up shutdowns until the file is closed.
func (l *logind) inhibit(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var fd dbus.UnixFD
	err := l.conn.Object(logindName, logindPath).CallWithContext(ctx, logindManager+".Inhibit", 0,
		"shutdown", "skiff", "pods are being ended", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("asking systemd-logind to hold up shutdowns: %w", err)
	}
	unix.CloseOnExec(int(fd)) // nobody that skiff starts may keep it
	return os.NewFile(uintptr(fd), "logind inhibitor"), nil
}

// delay is how long logind waits for inhibitors.
func (l *logind) delay(ctx context.Context) (time.Duration, error) {
	v, err := l.property(ctx, "InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("asking systemd-logind how long it waits: %w", err)
	}
	us, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("asking systemd-logind how long it waits: it answers with a %s", v.Signature())
	}
	const most = uint64(1<<63-1) / uint64(time.Microsecond)
	return time.Duration(min(us, most)) * time.Microsecond, nil
}

// preparing says that a shutdown was announced and not taken back.
func (l *logind) preparing(ctx context.Context) (bool, error) {
	v, err := l.property(ctx, "PreparingForShutdown")
	if err != nil {
		return false, fmt.Errorf("asking systemd-logind whether the machine is shut down: %w", err)
	}
	yes, _ := v.Value().(bool)
	return yes, nil
}

func (l *logind) property(ctx context.Context, name string) (v dbus.Variant, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = l.conn.Object(logindName, logindPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, logindManager, name).Store(&v)
	return v, err
}

// raise makes logind wait for at least want, and returns how long it does.
func (l *logind) raise(ctx context.Context, want time.Duration) (time.Duration, error) {
	have, err := l.delay(ctx)
	if err != nil || have >= want {
		return have, err
	}
	text := fmt.Sprintf("# Written by skiff: its pods take so long to end (--shutdown-grace-period).\n[Login]\nInhibitDelayMaxSec=%d\n", int64(want/time.Second))
	if err := os.MkdirAll(filepath.Dir(l.dropIn), 0o755); err != nil {
		return have, fmt.Errorf("raising how long systemd-logind waits: %w", err)
	}
	if err := os.WriteFile(l.dropIn, []byte(text), 0o644); err != nil {
		return have, fmt.Errorf("raising how long systemd-logind waits: %w", err)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = l.conn.Object(systemdName, systemdPath).CallWithContext(call, systemdManager+".KillUnit", 0, "systemd-logind.service", "all", int32(unix.SIGHUP)).Err
	if err != nil {
		return have, fmt.Errorf("having systemd-logind read %s: %w", l.dropIn, err)
	}
	for end := time.Now().Add(reloadTimeout); have < want && time.Now().Before(end); { // it reads it when it likes
		select {
		case <-ctx.Done():
			return have, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if have, err = l.delay(ctx); err != nil {
			return have, err
		}
	}
	return have, nil
}

// next waits for logind to announce a shutdown, or to take it back.
func (l *logind) next(ctx context.Context) (begins bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-l.conn.Context().Done():
			return false, errors.New("the connection to the D-Bus system bus has ended")
		case s, ok := <-l.signals:
			if !ok {
				return false, errors.New("the connection to the D-Bus system bus has ended")
			}
			if s.Name != logindManager+".PrepareForShutdown" || len(s.Body) == 0 {
				continue
			}
			if begins, ok := s.Body[0].(bool); ok {
				return begins, nil
			}
		}
	}
}
