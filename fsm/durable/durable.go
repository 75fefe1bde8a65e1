// Package durable writes small files so that they survive a crash at any moment:
// whole or not at all, and on the disk when the call returns.
//
// Limits: contents are in memory; owner, links and extended attributes of a file
// that is replaced are not kept; two processes must not replace the same file at
// the same time.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// suffix of what is being written. What a crash left is removed by the next
// Replace of the same file.
const suffix = ".new"

// Replace makes path hold b with that mode, or leaves it as it was. The error
// names the file.
func Replace(path string, b []byte, mode fs.FileMode) error {
	tmp := path + suffix
	err := os.Remove(tmp)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = Create(tmp, b, mode)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp) // it may be a part
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Create makes a new file; one that exists is an error (fs.ErrExist). Its name
// lasts when SyncDir was called for its directory.
func Create(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir makes the names in a directory last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
