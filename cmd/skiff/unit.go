package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
)

const (
	unitName       = "skiff.service"
	defaultUnitDir = "/etc/systemd/system"
	unitHeader     = "# Made by skiff install. Your changes belong into " + unitName + ".d/*.conf"
	// oomScore lets the kernel end others before skiff; its pods have scores of
	// their own.
	oomScore = -999
)

// unitText is the unit. What it has to say:
//   - KillMode: shims and the guard of an upgrade outlive skiff.
//   - ExecStartPre runs the program from before an upgrade, while that is on trial.
//   - Restart and StartLimitIntervalSec: systemd never gives up, also when the
//     disk is full for a while.
//   - TimeoutStartSec: skiff is up after a minute, see notifyReady; before that a
//     long log may have to be read.
func (i *installation) unitText(dataDir string) string {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		abs = dataDir
	}
	folder := binary.Dir(abs)
	score := ""
	if mayProtect() {
		score = fmt.Sprintf("OOMScoreAdjust=%d\n", oomScore)
	}
	return unitHeader + `

[Unit]
Description=skiff ` + i.role + `
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStartPre=-/bin/sh -c 'test ! -e "$$0" || exec "$$0" ` + guardName + ` --before-start "$$1"' ` + filepath.Join(folder, "guard") + ` ` + folder + `
ExecStart=` + i.program + ` ` + i.role + ` --config ` + i.config + `
KillMode=process
Delegate=yes
Restart=always
RestartSec=1s
TimeoutStartSec=5min
TimeoutStopSec=90s
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
` + score + `
[Install]
WantedBy=multi-user.target
`
}

// mayProtect tells whether this host lets a process be protected from the kernel's
// search for memory, as containers do not.
func mayProtect() bool {
	const path = "/proc/self/oom_score_adj"
	was, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	if os.WriteFile(path, []byte(strconv.Itoa(oomScore)), 0) != nil {
		return false
	}
	_ = os.WriteFile(path, was, 0)
	return true
}

// systemdRuns tells whether systemd is this host's service manager.
func systemdRuns() bool {
	_, err := os.Stat("/run/systemd/system")
	_, lookErr := exec.LookPath("systemctl")
	return err == nil && lookErr == nil
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// start makes systemd run what is installed. A skiff that runs and has changed is
// started anew; its pods go on.
func (i *installation) start(ctx context.Context, changed bool) error {
	if _, err := systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if _, err := systemctl(ctx, "enable", unitName); err != nil {
		return err
	}
	verb := "start"
	if changed {
		verb = "restart"
	}
	if _, err := systemctl(ctx, verb, unitName); err != nil {
		return fmt.Errorf("%w; see journalctl -u %s", err, unitName)
	}
	i.say("%s is enabled and runs: see systemctl status %s, skiff status", unitName, unitName)
	return nil
}

// lockedBy is the process that has the data directory; 0 if none has.
func lockedBy(dataDir string) (int, error) {
	f, err := os.Open(filepath.Join(dataDir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, err
	}
	b := make([]byte, 16)
	n, _ := f.Read(b)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return max(pid, 1), nil
}
