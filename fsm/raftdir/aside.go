package raftdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// A log that is given up is moved aside, not deleted: raft.epoch-N, of which the
// newest stays.
const asidePrefix = "raft.epoch-"

// nextDir holds, as a data dir of its own, what takes the place of raft/. It has
// this name when it is complete.
func nextDir(dataDir string) string { return filepath.Join(dataDir, "raft.next") }

func fillingDir(dataDir string) string { return nextDir(dataDir) + ".tmp" }

// Renew puts other Raft state in the place of that of a data dir. fill makes it in
// a data dir without one, which the function gets. What was there is moved aside;
// aside is its path, empty if there was nothing.
//
// A crash leaves the old state in its place, or the new one, or neither and the
// new one complete beside it, which FinishRenewal puts in place: it must be called
// before a data dir is used.
func Renew(dataDir string, fill func(dir string) error) (aside string, err error) {
	return renew(dataDir, fill, func(string) error { return nil })
}

// renew calls step before each change, for tests.
func renew(dataDir string, fill func(dir string) error, step func(name string) error) (aside string, err error) {
	if err := FinishRenewal(dataDir); err != nil {
		return "", err
	}
	filling, next := fillingDir(dataDir), nextDir(dataDir)
	defer func() {
		if err != nil {
			err = fmt.Errorf("new raft state in %s: %w", dataDir, err)
		}
	}()
	if err := os.Mkdir(filling, 0o700); err != nil {
		return "", err
	}
	do := func(name string, f func() error) {
		if err == nil {
			err = step(name)
		}
		if err == nil {
			err = f()
		}
	}
	do("fill", func() error { return fill(filling) })
	do("sync", func() error { return syncTree(filling) })
	do("complete", func() error { return os.Rename(filling, next) })
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(filling))
	}
	old := Path(dataDir)
	_, statErr := os.Stat(old)
	if statErr == nil {
		e, err := LoadEpoch(dataDir)
		if err != nil {
			e.Number = 0 // damaged: it is moved aside all the same
		}
		aside = filepath.Join(dataDir, fmt.Sprintf("%s%d", asidePrefix, e.Number))
	}
	before := asides(dataDir)
	if aside != "" {
		// Of that name there may be one, from an epoch of the same number.
		do("make room", func() error { return os.RemoveAll(aside) })
		do("aside", func() error { return os.Rename(old, aside) })
		do("sync aside", func() error { return durable.SyncDir(dataDir) })
	}
	do("in place", func() error { return os.Rename(Path(next), old) })
	do("sync", func() error { return durable.SyncDir(dataDir) })
	do("tidy", func() error { return os.RemoveAll(next) })
	for _, path := range before {
		if path != aside && aside != "" {
			do("forget", func() error { return os.RemoveAll(path) })
		}
	}
	return aside, err
}

// FinishRenewal ends what a crash has interrupted in Renew.
func FinishRenewal(dataDir string) error {
	if err := os.RemoveAll(fillingDir(dataDir)); err != nil {
		return fmt.Errorf("raft state that was not finished: %w", err)
	}
	next := nextDir(dataDir)
	_, err := os.Stat(Path(next))
	if err == nil {
		if _, e := os.Stat(Path(dataDir)); errors.Is(e, fs.ErrNotExist) {
			if err := errors.Join(os.Rename(Path(next), Path(dataDir)), durable.SyncDir(dataDir)); err != nil {
				return fmt.Errorf("put raft state in its place: %w", err)
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(next); err != nil {
		return fmt.Errorf("raft state that was not put in place: %w", err)
	}
	return nil
}

// asides are the directories of logs that were given up.
func asides(dataDir string) (paths []string) {
	entries, _ := os.ReadDir(dataDir)
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), asidePrefix) {
			paths = append(paths, filepath.Join(dataDir, e.Name()))
		}
	}
	return paths
}

// syncTree makes the names in a directory and those below it last. The files in
// it have been synced.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(path)
	})
}
