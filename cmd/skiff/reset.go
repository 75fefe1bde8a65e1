package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/netproxy"
	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/runtime"
)

func resetCommand() *cli.Command {
	return &cli.Command{
		Name:  "reset",
		Usage: "stop this host's pods and remove every rule, link, route, mount and cgroup that skiff made",
		Description: "The server must not be running. The data directory is kept unless --delete-data is given:\n" +
			"a server started on it runs the same pods again.",
		Flags: []cli.Flag{
			dataDirFlag(),
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")},
			&cli.BoolFlag{Name: "delete-data", Usage: "delete the data directory too, and with it the cluster's state and the snapshots in it", EnvVars: env("delete-data")},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed", EnvVars: env("dry-run")},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := needRoot("skiff reset"); err != nil {
				return err
			}
			dir, err := filepath.Abs(c.String("data-dir"))
			if err != nil {
				return err
			}
			r, err := newReset(c.Context, dir)
			if err != nil {
				return err
			}
			defer r.close()
			r.describe(c, c.Bool("delete-data"))
			if c.Bool("dry-run") {
				return nil
			}
			if !c.Bool("yes") {
				if err := confirm(c, "Go on?"); err != nil {
					return err
				}
			}
			return r.run(c.Context, c.Bool("delete-data"))
		},
	}
}

func confirm(c *cli.Context, question string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("nobody is there to answer: use --yes")
	}
	fmt.Fprintf(c.App.Writer, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(os.Stdin, &answer); err != nil || !slices.Contains([]string{"y", "yes"}, strings.ToLower(answer)) {
		return cli.Exit("nothing was done", exitFailed)
	}
	return nil
}

// reset is what one instance left on the host.
type reset struct {
	dataDir, stateDir string
	lock              *consensus.DirLock
	containers        *runtime.Runtime
	sandboxes         []*runtime.Sandbox
	mounts, cgroups   []string
}

func newReset(ctx context.Context, dataDir string) (*reset, error) {
	r := &reset{dataDir: dataDir}
	var err error
	if r.stateDir, err = stateDir(dataDir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dataDir); err == nil {
		if r.lock, err = consensus.LockDir(dataDir); err != nil {
			return nil, fmt.Errorf("the server has to be stopped first: %w", err)
		}
	}
	if err := r.look(ctx); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *reset) look(ctx context.Context) (err error) {
	if _, err := os.Stat(r.stateDir); err == nil {
		r.containers, err = runtime.New(runtime.Config{StateDir: r.stateDir, DataDir: filepath.Join(r.dataDir, "node"),
			CgroupRoot: cgroupRoot(r.stateDir), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return fmt.Errorf("container runtime: %w", err)
		}
		if r.sandboxes, err = r.containers.Sandboxes(ctx); err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
	}
	if r.mounts, err = r.findMounts(); err != nil {
		return err
	}
	r.cgroups, err = cgroupsOf(cgroupRoot(r.stateDir))
	return err
}

// logs is where the logs of pods are.
func (r *reset) logs() logs.Place { return logs.Place{DataDir: filepath.Join(r.dataDir, "node")} }

// parents are the directories that the files are in.
func parents(files []string) (out []string) {
	for _, f := range files {
		out = append(out, filepath.Dir(f))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r *reset) close() {
	if r.lock != nil {
		r.lock.Unlock()
	}
}

func (r *reset) describe(c *cli.Context, deleteData bool) {
	say := func(format string, args ...any) { fmt.Fprintf(c.App.Writer, format+"\n", args...) }
	say("pods to stop: %d", len(r.sandboxes))
	say("mounts to remove: %d below %s and %s", len(r.mounts), r.dataDir, r.stateDir)
	say("cgroups to remove: %d below %s", len(r.cgroups), cgroupRoot(r.stateDir))
	say("network: the nftables table %s, links named skiff*, skiff's routes and addresses", netproxy.DefaultTableName)
	if !deleteData {
		return
	}
	if volumes, err := os.ReadDir(filepath.Join(r.dataDir, "storage")); err == nil && len(volumes) > 0 {
		say("volumes of PersistentVolumes to delete, with what is in them: %d below %s", len(volumes), filepath.Join(r.dataDir, "storage"))
	}
	if folders := r.logs().Folders(); len(folders) > 0 {
		say("logs of pods to delete outside of the data directory, and the links to them: %d folders in %s", len(folders), strings.Join(parents(folders), ", "))
	}
	say("data directory to DELETE: %s", r.dataDir)
	if dir, err := realDir(r.dataDir); err == nil && dir != r.dataDir {
		say("a link leads from there: what is in %s is deleted", dir)
	}
	if name := r.member(); name != "" {
		say("the other servers keep this host as member %s, unless it has left: see skiff leave, or skiff member remove %s on a server", name, name)
	}
}

// member is the name under which other servers know this host; "" if there are
// none, or it is not known.
func (r *reset) member() string {
	name, err := nameInCluster(r.dataDir)
	if err != nil || name == "" {
		return ""
	}
	known, err := membership.LoadCluster(r.dataDir)
	if err != nil || known == nil || !slices.ContainsFunc(known.Servers, func(s membership.Server) bool { return s.Name != name }) {
		return ""
	}
	return name
}

// run removes in the order of dependence and goes on after errors, so that one
// stuck mount does not keep the rest.
func (r *reset) run(ctx context.Context, deleteData bool) error {
	var errs []error
	for _, s := range r.sandboxes {
		if err := s.Remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", s.PodUID(), err))
		}
	}
	if r.containers != nil {
		if err := r.containers.DropSockets(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := netproxy.Reset(netproxy.Config{}); err != nil {
		errs = append(errs, fmt.Errorf("network: %w", err))
	}
	// Removing the pods has removed most of these.
	mounts, err := r.findMounts()
	if err != nil {
		errs = append(errs, err)
	}
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it went with another
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	switch left, err := r.findMounts(); {
	case err != nil:
		errs = append(errs, err)
	case len(left) > 0:
		errs = append(errs, fmt.Errorf("%s is still mounted", left[0]))
	}
	cgroups, err := cgroupsOf(cgroupRoot(r.stateDir))
	if err != nil {
		errs = append(errs, err)
	}
	for _, g := range cgroups {
		if err := removeCgroup(g); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", g, err))
		}
		if strings.HasSuffix(g, cgroupRoot(r.stateDir)) {
			_ = unix.Rmdir(filepath.Dir(g)) // not while it has those of others
		}
	}
	if len(errs) == 0 { // else a mount may still lead out of here
		if err := os.RemoveAll(r.stateDir); err != nil {
			errs = append(errs, err)
		}
		if deleteData {
			if err := r.logs().Clear(); err != nil { // what it has not removed is recorded in the data directory
				return fmt.Errorf("logs of pods: %w", err)
			}
			if err := r.deleteData(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// deleteData deletes the data directory, and a link to it.
func (r *reset) deleteData() error {
	dir, err := realDir(r.dataDir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.RemoveAll(r.dataDir)
}

// findMounts lists the instance's mount points, the innermost first, and last
// the state directory where it is one itself, see makeStateDir. The data
// directory may be one too, but then it is not ours.
func (r *reset) findMounts() ([]string, error) {
	dataDir, err := realDir(r.dataDir)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsBelow(dataDir, r.stateDir)
	if err != nil {
		return nil, err
	}
	own, err := mountinfo.Mounted(r.stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state directory %s: %w", r.stateDir, err)
	}
	if own {
		mounts = append(mounts, r.stateDir)
	}
	return mounts, nil
}

// realDir is where a data directory is that links may lead to: the kernel knows
// mounts by that. One that does not exist is where it would be.
func realDir(dataDir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return dataDir, nil
	}
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return dir, nil
}

// mountsBelow lists mount points below the folders, the innermost first. No link
// may be in their paths.
func mountsBelow(dirs ...string) ([]string, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		for _, d := range dirs {
			if strings.HasPrefix(i.Mountpoint, d+"/") {
				return false, false
			}
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for _, i := range slices.Backward(infos) {
		out = append(out, i.Mountpoint)
	}
	return out, nil
}

// cgroupsOf lists the cgroups of root in every hierarchy, the innermost first.
func cgroupsOf(root string) ([]string, error) {
	const base = "/sys/fs/cgroup"
	hierarchies := []string{base}
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			hierarchies = append(hierarchies, filepath.Join(base, e.Name()))
		}
	}
	var out []string
	for _, h := range hierarchies {
		top := filepath.Join(h, root)
		var found []string
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				found = append(found, p)
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // gone meanwhile
				return nil
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		slices.Reverse(found)
		out = append(out, found...)
	}
	return out, nil
}

// removeCgroup kills what is still in it, such as a shim whose records are
// lost, and waits up to 10 s for it to be gone.
func removeCgroup(path string) error {
	var err error
	for range 500 {
		if err = unix.Rmdir(path); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		pids, rerr := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && !errors.Is(rerr, unix.ENODEV) {
			return rerr
		}
		for _, field := range strings.Fields(string(pids)) {
			// 0 is a process that this namespace does not see.
			if pid, perr := strconv.Atoi(field); perr == nil && pid > 1 {
				if kerr := unix.Kill(pid, unix.SIGKILL); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
					return kerr
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
