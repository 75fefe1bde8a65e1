//go:build cgo

// Command skiff-shim is the supervisor of one pod. It owns the pod's network, IPC and
// UTS namespaces (it was cloned into them), runs the pod's containers with
// libcontainer, writes their logs, keeps their standard streams open and
// records how they ended. It answers skiff on a Unix socket and does not care
// whether skiff is there: containers go on while skiff is restarted, upgraded
// or dead.
//
// There is one such process for each pod, so it is kept small: one scheduler
// thread, an eager garbage collector, memory given back when idle, no buffers
// held for silent streams.
//
// It is not meant to be started by hand: node/runtime does it, with the
// listening socket as file descriptor 3 and the sandbox's directory as argument.
package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	_ "github.com/opencontainers/cgroups/devices" // device rules; libcontainer refuses to start without
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go starts
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// build is set by the linker: -X main.build=<version>.
var build = "dev"

// translateCommand is the argument of a process that translates a seccomp profile.
const translateCommand = "translate-seccomp"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // the first process of a container or exec; does not return
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "skiff-shim is started by skiff, one for each pod; it has no use on its own")
		os.Exit(2)
	}
	switch os.Args[1] {
	case shimproto.HoldCommand:
		hold()
	case translateCommand:
		if err := translate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	slog.Error("shim ends", "err", run(os.Args[1])) // it ends in order by a request to shut down
	os.Exit(1)
}

// hold keeps the descriptors that it was started with open until it is killed.
func hold() {
	dropSignals()
	debug.FreeOSMemory()
	for {
		_ = unix.Pause()
	}
}

// dropSignals outlives whoever stops skiff (a terminal, a service manager). The
// signals are caught and dropped, not ignored: containers would inherit that.
func dropSignals() {
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	go func() {
		for range dropped {
		}
	}()
}

// run serves until it fails.
func run(dir string) error {
	debug.SetGCPercent(30)
	logrus.SetLevel(logrus.WarnLevel)
	dropSignals()

	f := os.NewFile(shimproto.ListenFD, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("the listening socket was not handed over: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	s, err := newSupervisor(dir)
	if err != nil {
		return err
	}
	s.setup()
	if f := s.cfg.Fence; f != nil {
		s.fence = &fence{cfg: f, allowed: time.Duration(f.Seconds) * time.Second, last: shimproto.FenceRecord{Granted: int64(sinceBoot())}}
		go s.keepFence()
	}
	return s.serve(l)
}
