package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sizes and numbers of log files, as kubelet has them.
const (
	MaxSize  = 10 << 20
	MaxFiles = 5 // of one attempt, the one being written included
)

// How often sizes are looked at: the kernel tells of each write, but that would be
// an event for each line.
const (
	lookMost  = 2 * time.Second
	lookLeast = 50 * time.Millisecond
)

// File is the log of a container's newest attempt.
type File struct {
	Path   string       // <dir of the container>/<attempt>.log
	Reopen func() error // has the writer begin Path anew; nil: it has ended
}

// Rotator keeps the logs of running containers small, and removes those of
// attempts before the previous one. Not safe for concurrent use.
type Rotator struct {
	MaxSize  int64 // bytes at which a new file is begun
	MaxFiles int   // of one attempt, the one being written included; at least 2

	at   time.Time // of the last look
	seen map[string]int64
}

// Look rotates what has grown large and returns after which time to look again:
// before a file that goes on growing as it does is twice as large as it should be.
func (r *Rotator) Look(now time.Time, files []File) (time.Duration, error) {
	var errs []error
	passed := now.Sub(r.at)
	if r.at.IsZero() || passed <= 0 || passed > lookMost {
		passed = lookMost
	}
	again, seen := lookMost, make(map[string]int64, len(files))
	for _, f := range files {
		before, known := r.seen[f.Path]
		if !known {
			errs = append(errs, removeOld(f.Path))
		}
		if f.Reopen == nil {
			seen[f.Path] = before
			continue
		}
		size, err := rotate(f.Path, r.MaxSize, r.MaxFiles, now, f.Reopen)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		grown := size - before
		if size >= r.MaxSize {
			size = 0 // a new file
		}
		seen[f.Path] = size
		if grown > 0 {
			left := float64(2*r.MaxSize-size) / float64(grown) * float64(passed) / 2
			again = min(again, max(lookLeast, time.Duration(min(left, float64(lookMost)))))
		}
	}
	r.seen, r.at = seen, now
	return again, errors.Join(errs...)
}

// Rotate renames the log at path when it is larger than maxSize, has reopen
// begin a new one, and removes the oldest so that maxFiles are left. Nothing
// is lost when it is interrupted: the next call goes on.
func Rotate(path string, maxSize int64, maxFiles int, now time.Time, reopen func() error) error {
	_, err := rotate(path, maxSize, maxFiles, now, reopen)
	return err
}

// rotate returns the size that was found.
func rotate(path string, maxSize int64, maxFiles int, now time.Time, reopen func() error) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if len(rotated(path)) == 0 {
			return 0, nil // nothing was written yet, or the container is gone
		}
		// Renamed, but never begun anew: who did it was interrupted.
		if err := reopen(); err != nil {
			return 0, fmt.Errorf("beginning a new log: %w", err)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("rotating a log: %w", err)
	}
	if info.Size() < maxSize {
		return info.Size(), nil
	}
	// First what goes, so that a full disk has room for the new file.
	files := rotated(path)
	for len(files) > max(0, maxFiles-2) {
		if err := os.Remove(files[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return info.Size(), fmt.Errorf("removing an old log: %w", err)
		}
		files = files[1:]
	}
	old := rotatedName(path, files, now)
	if err := os.Rename(path, old); err != nil {
		return info.Size(), fmt.Errorf("rotating a log: %w", err)
	}
	if err := reopen(); err != nil {
		// The writer still has the old file: give it back its name.
		return info.Size(), errors.Join(fmt.Errorf("beginning a new log: %w", err), os.Rename(old, path))
	}
	return info.Size(), nil
}

const stampFormat = "20060102-150405.000000000"

// rotatedName sorts after those there are, even when the clock was set back.
func rotatedName(path string, files []string, now time.Time) string {
	if len(files) > 0 {
		last, err := time.Parse(stampFormat, strings.TrimPrefix(files[len(files)-1], path+"."))
		if err == nil && !now.After(last) {
			now = last.Add(1)
		}
	}
	return path + "." + now.UTC().Format(stampFormat)
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

// removeOld removes the logs of attempts before the previous one of the log at
// path, and the links to them: nobody can ask for them.
func removeOld(path string) error {
	dir := filepath.Dir(path)
	newest, ok := attemptOf(filepath.Base(path))
	if !ok || newest < 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing logs of earlier attempts: %w", err)
	}
	var errs []error
	removed := false
	for _, e := range entries {
		if n, ok := attemptOf(e.Name()); ok && n < newest-1 {
			removed = true
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if removed {
		errs = append(errs, removeLinks(filepath.Dir(dir), true))
	}
	return errors.Join(errs...)
}

// attemptOf reads the number of <attempt>.log and of its rotated files.
func attemptOf(name string) (uint64, bool) {
	digits, rest, ok := strings.Cut(name, ".")
	if !ok || rest != "log" && !strings.HasPrefix(rest, "log.") {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return n, err == nil
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
