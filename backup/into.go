package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// made are the names that a restore makes in a data dir; raft is the last to
// appear. With one of them, or one of taken, the directory is a member's.
var (
	made  = []string{"pki", "node-id", "cluster.json", "raft"}
	taken = []string{"agent", "epoch-intent.json", "raft.next"}
)

// freeFor says whether dataDir is there, and why nothing may be restored into it,
// if so (ErrExists). What belongs to no member may stay in it: pods that run
// on the host, images, snapshots, logs that were moved aside.
func freeFor(dataDir string) (exists bool, err error) {
	st, err := os.Stat(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dataDir); err == nil {
			return false, fmt.Errorf("data dir %s leads nowhere", dataDir)
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !st.IsDir() {
		return false, fmt.Errorf("data dir %s %w, and is no directory", dataDir, ErrExists)
	}
	if raftdir.Restoring(dataDir) {
		return true, nil // what is there is from one that was interrupted
	}
	for _, name := range slices.Concat(made, taken) {
		path := filepath.Join(dataDir, name)
		if _, err := os.Lstat(path); err == nil {
			return true, fmt.Errorf("%s %w, so %s is the directory of a member", path, ErrExists, dataDir)
		}
	}
	return true, nil
}

// putInto moves what is in tmp, a directory within dataDir, into dataDir. A note
// says that it is under way: with it no server starts there, and another restore
// begins by removing what this one has moved.
func putInto(tmp, dataDir string) error {
	if raftdir.Restoring(dataDir) {
		for _, name := range made {
			if err := os.RemoveAll(filepath.Join(dataDir, name)); err != nil {
				return err
			}
		}
	}
	if err := raftdir.SetRestoring(dataDir, true); err != nil {
		return err
	}
	for _, name := range made {
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(tmp, name), unix.AT_FDCWD, filepath.Join(dataDir, name), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) {
			err = os.Rename(filepath.Join(tmp, name), filepath.Join(dataDir, name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // there may be no cluster.json
			return fmt.Errorf("put %s in place: %w", filepath.Join(dataDir, name), err)
		}
	}
	if err := durable.SyncDir(dataDir); err != nil {
		return err
	}
	return raftdir.SetRestoring(dataDir, false)
}
