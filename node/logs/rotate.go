package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Sizes and numbers of log files, as kubelet has them.
const (
	MaxSize  = 10 << 20
	MaxFiles = 5 // of one attempt, the one being written included
)

// Rotate renames the log at path when it is larger than maxSize, has reopen
// begin a new one, and removes the oldest so that maxFiles are left. Nothing
// is lost when it is interrupted: the next call goes on.
func Rotate(path string, maxSize int64, maxFiles int, now time.Time, reopen func() error) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotating a log: %w", err)
	}
	if info.Size() < maxSize {
		return nil
	}
	old := path + "." + now.UTC().Format("20060102-150405.000000000")
	if err := os.Rename(path, old); err != nil {
		return fmt.Errorf("rotating a log: %w", err)
	}
	if err := reopen(); err != nil {
		// The writer still has the old file: give it back its name.
		return errors.Join(fmt.Errorf("beginning a new log: %w", err), os.Rename(old, path))
	}
	for files := rotated(path); len(files) > maxFiles-1; files = files[1:] {
		if err := os.Remove(files[0]); err != nil {
			return fmt.Errorf("removing an old log: %w", err)
		}
	}
	return nil
}

// rotated returns the renamed files of a log, oldest first.
func rotated(path string) []string {
	files, err := filepath.Glob(globEscape(path) + ".*")
	if err != nil { // only for a bad pattern, and ours is escaped
		return nil
	}
	slices.Sort(files)
	return files
}

func globEscape(path string) string {
	var out []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, path[i])
	}
	return string(out)
}
