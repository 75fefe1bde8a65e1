package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
)

// systemdPatience is how long systemd is left to think that skiff starts. A
// server without a quorum, and an agent without a server, run their pods and are
// up in that sense; what waits for skiff at boot must not wait for them.
const systemdPatience = time.Minute

// tellSystemd tells the service manager that started this process, if one did.
func tellSystemd(log *slog.Logger, lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		log.Warn("the service manager is not told", "what", lines[0], "error", err)
	}
}

// notifyReady says that skiff is up when ready is closed, or as much as it can be
// without others.
func notifyReady(ctx context.Context, log *slog.Logger, ready <-chan struct{}, missing string) error {
	up := []string{daemon.SdNotifyReady, "MAINPID=" + strconv.Itoa(os.Getpid())}
	for late := time.After(systemdPatience); ; late = nil {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			tellSystemd(log, append(up, "STATUS=skiff "+version)...)
			return nil
		case <-late:
			tellSystemd(log, append(up, "STATUS=skiff "+version+": "+missing)...)
		}
	}
}

// notifyEnding says that skiff stops, or that it goes on as another program in the
// same process.
func notifyEnding(log *slog.Logger, err error) {
	var other *binary.Exec
	if errors.Is(err, errAgain) || errors.As(err, &other) {
		tellSystemd(log, daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec(), "STATUS=skiff "+version+" starts again")
		return
	}
	tellSystemd(log, daemon.SdNotifyStopping)
}
