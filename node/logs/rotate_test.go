package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer writes a log as a shim does: nothing goes to the old file once the new
// one can be seen.
type writer struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

func (w *writer) reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if w.f != nil {
		w.f.Close()
	}
	w.f = f
	return nil
}

func (w *writer) lines(from, to int) error {
	var b bytes.Buffer
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "2026-01-01T00:00:00.000000001Z stdout F line %d\n", i)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.f.Write(b.Bytes())
	return err
}

func newWriter(t *testing.T, path string) *writer {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	w := &writer{path: path}
	if err := w.reopen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.f.Close() })
	return w
}

// TestFollowersLoseNothingUnderLoad rotates a log every few hundred lines while
// three readers follow it.
func TestFollowersLoseNothingUnderLoad(t *testing.T) {
	const all, chunk = 60_000, 50
	path := filepath.Join(t.TempDir(), "app", "0.log")
	w := newWriter(t, path)
	r := &Rotator{MaxSize: 20 << 10, MaxFiles: 400}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ended := make(chan struct{})
	outs := make([]syncBuffer, 3)
	if err := w.lines(0, chunk); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for i := range outs {
		readers.Go(func() {
			if err := Read(ctx, path, Options{Follow: true}, &outs[i], &outs[i], ended); err != nil {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	for i := range outs {
		await(t, fmt.Sprint("reader ", i), func() bool { return outs[i].String() != "" })
	}
	rotations := 0
	for i := chunk; i < all; i += chunk {
		if err := w.lines(i, i+chunk); err != nil {
			t.Fatal(err)
		}
		if i%(7*chunk) == 0 {
			before := len(rotated(path))
			if _, err := r.Look(time.Now(), []File{{path, w.reopen}}); err != nil {
				t.Fatal(err)
			}
			rotations += len(rotated(path)) - before
		}
	}
	close(ended)
	readers.Wait()
	if rotations < 50 {
		t.Errorf("%d rotations: the test did not rotate under load", rotations)
	}
	for i := range outs {
		got := strings.Split(strings.TrimSuffix(outs[i].String(), "\n"), "\n")
		for j := range min(len(got), all) {
			if got[j] != fmt.Sprint("line ", j) {
				t.Fatalf("reader %d: line %d is %q", i, j, got[j])
			}
		}
		if len(got) != all {
			t.Errorf("reader %d has %d lines of %d", i, len(got), all)
		}
	}
}

func TestInterruptedRotationGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app", "0.log")
	w := newWriter(t, path)
	if err := w.lines(0, 3); err != nil {
		t.Fatal(err)
	}
	// Renamed, and then whoever did it was killed.
	if err := os.Rename(path, path+".20260101-000000.000000000"); err != nil {
		t.Fatal(err)
	}
	if !Exists(path) || Exists(path+"x") {
		t.Error("a log that is being rotated is there, one that never was is not")
	}
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{}, &out, &out, nil); err != nil || out.String() != "line 0\nline 1\nline 2\n" {
		t.Errorf("in the middle of a rotation the log is %q, %v", out.String(), err)
	}
	if err := Rotate(path, 1<<20, 5, time.Now(), w.reopen); err != nil {
		t.Fatal(err)
	}
	if err := w.lines(3, 4); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(b), "line 3\n") {
		t.Errorf("the log was not begun anew: %q, %v", b, err)
	}
}

func TestRotatedFilesAreInOrderThoughTheClockGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app", "0.log")
	w := newWriter(t, path)
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for i := range 6 {
		if err := w.lines(i, i+1); err != nil {
			t.Fatal(err)
		}
		if err := Rotate(path, 1, 4, now.Add(-time.Duration(i)*time.Hour), w.reopen); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, f := range append(rotated(path), path) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(strings.TrimPrefix(string(b), "2026-01-01T00:00:00.000000001Z stdout F ")))
	}
	if want := []string{"line 3", "line 4", "line 5", ""}; !slices.Equal(got, want) {
		t.Errorf("files hold %q, want %q", got, want)
	}
}

func TestLooksSoonerAtWhatGrowsFast(t *testing.T) {
	for _, tc := range []struct {
		name   string
		growth int // lines in each second
		want   [2]time.Duration
	}{
		{"silent", 0, [2]time.Duration{lookMost, lookMost}},
		{"slow", 10, [2]time.Duration{lookMost, lookMost}},
		{"fast", 20_000, [2]time.Duration{lookLeast, lookMost / 2}},
		{"very fast", 100_000, [2]time.Duration{lookLeast, lookMost / 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app", "0.log")
			w := newWriter(t, path)
			r := &Rotator{MaxSize: 500 << 10, MaxFiles: 3}
			now := time.Now()
			for i := range 3 {
				if err := w.lines(0, tc.growth); err != nil {
					t.Fatal(err)
				}
				now = now.Add(time.Second)
				again, err := r.Look(now, []File{{path, w.reopen}})
				if err != nil {
					t.Fatal(err)
				}
				if i == 2 && (again < tc.want[0] || again > tc.want[1]) { // by then it knows how fast
					t.Errorf("looks again after %s, want %s to %s", again, tc.want[0], tc.want[1])
				}
			}
		})
	}
}

func TestLogsOfEarlierAttemptsGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "app")
	w := newWriter(t, filepath.Join(dir, "12.log"))
	for _, name := range []string{"9.log", "10.log", "10.log.20260101-000000.000000000", "11.log", "11.log.20260101-000000.000000000", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &Rotator{MaxSize: MaxSize, MaxFiles: MaxFiles}
	if _, err := r.Look(time.Now(), []File{{w.path, w.reopen}}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{"11.log", "11.log.20260101-000000.000000000", "12.log", "notes.txt"}; !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	// One that crashes at once is never seen running.
	if err := os.Rename(w.path, filepath.Join(dir, "13.log")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Look(time.Now(), []File{{Path: filepath.Join(dir, "13.log")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "11.log")); !os.IsNotExist(err) {
		t.Errorf("the log of attempt 11 is left of one that has ended: %v", err)
	}
}

func TestOneBadLogDoesNotKeepOthersFromRotating(t *testing.T) {
	dir := t.TempDir()
	bad, good := newWriter(t, filepath.Join(dir, "bad", "0.log")), newWriter(t, filepath.Join(dir, "good", "0.log"))
	for _, w := range []*writer{bad, good} {
		if err := w.lines(0, 100); err != nil {
			t.Fatal(err)
		}
	}
	full := errors.New("no space left on device")
	r := &Rotator{MaxSize: 100, MaxFiles: 2}
	_, err := r.Look(time.Now(), []File{{bad.path, func() error { return full }}, {good.path, good.reopen}})
	if !errors.Is(err, full) {
		t.Errorf("the error is %v", err)
	}
	if info, err := os.Stat(good.path); err != nil || info.Size() != 0 {
		t.Errorf("the other log was not rotated: %v", err)
	}
	if len(rotated(bad.path)) != 0 {
		t.Error("the writer's file has lost its name")
	}
}

// TestOvertakenFollowerGoesOnWithTheOldest is about a reader so slow that the file
// it reads is removed: it loses that, and nothing that is still there.
func TestOvertakenFollowerGoesOnWithTheOldest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app", "0.log")
	w := newWriter(t, path)
	if err := w.lines(0, 1); err != nil {
		t.Fatal(err)
	}
	first, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for i := 1; i < 6; i++ {
		if err := Rotate(path, 1, 3, time.Now(), w.reopen); err != nil {
			t.Fatal(err)
		}
		if err := w.lines(i, i+1); err != nil {
			t.Fatal(err)
		}
	}
	next := successor(first, path)
	if next == nil {
		t.Fatal("no file follows")
	}
	defer next.Close()
	if next.Name() != rotated(path)[0] {
		t.Errorf("goes on with %s, want the oldest, %s", next.Name(), rotated(path)[0])
	}
}
