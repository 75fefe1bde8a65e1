// Package damage makes damaged copies of a data directory, for tests: each file
// is cut, emptied, deleted, replaced by a directory or by an older version of
// itself, and has a bit flipped at every place where its structure differs. It
// knows the structure of bolt files, of skiff's snapshots, of JSON and PEM.
//
// Limits: one damage at a time; regular files only.
package damage

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Case is one damage of one file.
type Case struct {
	File string // path below the directory
	What string
	Do   func(path string) error
}

func (c Case) String() string { return c.File + ": " + c.What }

// Apply does the damage in dir.
func (c Case) Apply(dir string) error {
	if err := c.Do(filepath.Join(dir, c.File)); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// place is a byte that means something of its own.
type place struct {
	name string
	at   int
}

// Cases gives the damages of all files below dir. older, if not "", is the same
// directory at an earlier time. Files that skip returns true for are left out.
func Cases(dir, older string, skip func(file string) bool) (out []Case, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		file, err := filepath.Rel(dir, path)
		if err != nil || skip != nil && skip(file) {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		out = append(out, whole(file, b)...)
		if older != "" {
			if old, err := os.ReadFile(filepath.Join(older, file)); err == nil && !bytes.Equal(old, b) {
				out = append(out, Case{file, "an older version", write(old)})
			}
		}
		for _, p := range places(file, b) {
			out = append(out, Case{file, "flipped: " + p.name, flip(p.at)})
		}
		return nil
	})
	return out, err
}

// whole are the damages that need to know nothing of the content.
func whole(file string, b []byte) []Case {
	out := []Case{
		{file, "deleted", os.Remove},
		{file, "a directory in its place", func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		}},
	}
	cuts := map[int]bool{}
	for _, c := range []struct {
		name string
		to   int
	}{{"cut to nothing", 0}, {"cut to a byte", 1}, {"cut in the middle", len(b)/2 | 1}, {"cut at a page", len(b) / 2 &^ 4095}, {"cut of its last page", (len(b) - 1) &^ 4095}, {"cut of its last byte", len(b) - 1}} {
		if c.to < 0 || c.to >= len(b) || cuts[c.to] {
			continue
		}
		cuts[c.to] = true
		out = append(out, Case{file, c.name, func(path string) error { return os.Truncate(path, int64(c.to)) }})
	}
	return append(out, Case{file, "all zeros", write(make([]byte, len(b)))}, Case{file, "a byte more", write(append(bytes.Clone(b), 'x'))})
}

func write(b []byte) func(string) error {
	return func(path string) error { return os.WriteFile(path, b, 0o600) }
}

// flip changes one bit, so that a digit stays a digit and a letter a letter.
func flip(at int) func(string) error {
	return func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, int64(at)); err != nil {
			return err
		}
		b[0] ^= 1
		_, err = f.WriteAt(b, int64(at))
		return err
	}
}

// places are where a file's structure differs.
func places(file string, b []byte) []place {
	switch {
	case len(b) == 0:
		return nil
	case strings.HasSuffix(file, ".db"):
		return boltPlaces(b)
	case bytes.HasPrefix(b, []byte("SKIFFSNP")):
		return snapshotPlaces(b)
	case bytes.HasPrefix(b, []byte("-----BEGIN ")):
		return pemPlaces(b)
	case bytes.HasPrefix(b, []byte("{")):
		return jsonPlaces(b)
	}
	return []place{{"first byte", 0}, {"middle", len(b) / 2}, {"last byte", len(b) - 1}}
}
