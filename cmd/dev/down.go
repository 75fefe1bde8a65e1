package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Down removes the cluster of dir with all that it has on this machine, also
// what a command that was killed has left. It says whether there was anything.
func Down(ctx context.Context, dir string) (found bool, err error) {
	p, err := placeOf(dir)
	if err != nil {
		return false, err
	}
	if os.Geteuid() != 0 {
		return false, errors.New("namespaces and disks need root: try sudo")
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	_, stateErr := os.Stat(p.file(stateFile))
	_, pinsErr := os.Stat(p.pins())
	found = stateErr == nil || pinsErr == nil
	// The state is not needed, it may be damaged or missing.
	if err := errors.Join(p.removeKernelObjects(), p.stopForwarding()); err != nil {
		return found, err
	}
	if !found {
		return false, nil // who knows whose files these are
	}
	return found, p.removeFiles()
}

// Down removes the cluster with all that it has on this machine.
func (c *Cluster) Down(ctx context.Context) error {
	_, err := Down(ctx, c.p.dir)
	return err
}

// removeKernelObjects removes processes, cgroups, namespaces, links, rules and
// loop devices. It needs no state: all of them are found by their names.
func (p place) removeKernelObjects() error {
	nodes, err := p.pinned()
	if err != nil {
		return err
	}
	var errs []error
	thawAll := func() {
		for _, n := range nodes {
			_ = p.thawNode(n)
		}
	}
	for _, n := range append(nodes, "") { // "": whoever is in the cgroups of the cluster
		errs = append(errs, p.killAll(n, thawAll))
	}
	for _, n := range nodes {
		errs = append(errs, p.letGo(n))
	}
	errs = append(errs, p.removeUplink(), p.removeRoute(), p.removeCgroups(""))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := unix.Unmount(p.pins(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", p.pins(), err)
	}
	if err := os.RemoveAll(p.pins()); err != nil {
		return err
	}
	return detachAll(p.file("nodes"))
}

// pinned lists the nodes, the switch too, that have namespaces.
func (p place) pinned() ([]string, error) {
	entries, err := os.ReadDir(p.pins())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// removeFiles removes what the cluster has in its folder, and the folder if
// nothing else is in it. The state goes last: as long as it is there, Down can
// be called again.
func (p place) removeFiles() error {
	if err := os.RemoveAll(p.file("nodes")); err != nil {
		return err
	}
	left, err := filepath.Glob(p.file("kubeconfig*"))
	if err != nil {
		return err
	}
	for _, f := range append(left, p.file(stateFile)) {
		if err := os.RemoveAll(f); err != nil {
			return err
		}
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
