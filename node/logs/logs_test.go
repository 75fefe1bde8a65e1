package logs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/utils/ptr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sample = `2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01Z stderr F two
2026-01-01T00:00:02Z stdout P thr
2026-01-01T00:00:02.5Z stdout F ee
broken
2026-01-01T00:00:03Z stdout F 
2026-01-01T00:00:04Z stdout F four
`

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"all", Options{}, "one\ntwo\nthree\n\nfour\n"},
		{"tail", Options{Tail: ptr.To[int64](2)}, "\nfour\n"},
		{"tail 0", Options{Tail: ptr.To[int64](0)}, ""},
		{"tail more than there is", Options{Tail: ptr.To[int64](99)}, "one\ntwo\nthree\n\nfour\n"},
		{"since", Options{Since: time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)}, "\nfour\n"},
		{"limit", Options{Limit: ptr.To[int64](6)}, "one\ntw"},
		{"timestamps", Options{Timestamps: true, Tail: ptr.To[int64](5)}, "2026-01-01T00:00:02Z three\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z four\n"},
	} {
		var b bytes.Buffer
		if err := Read(t.Context(), path, tc.o, &b, &b, nil); err != nil || b.String() != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, b.String(), err, tc.want)
		}
	}
	var out, errs bytes.Buffer
	if err := Read(t.Context(), path, Options{}, &out, &errs, nil); err != nil || errs.String() != "two\n" {
		t.Errorf("streams are mixed: %q %q %v", out.String(), errs.String(), err)
	}
	if err := Read(t.Context(), path+"x", Options{}, &out, nil, nil); err == nil {
		t.Error("a log that is not there was read")
	}
}

func TestTailOfALargeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var b bytes.Buffer
	for i := range 5000 {
		fmt.Fprintf(&b, "2026-01-01T00:00:00Z stdout F line %d\n", i)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{Tail: ptr.To[int64](3000)}, &out, nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 3000 || !strings.HasPrefix(out.String(), "line 2000\n") {
		t.Errorf("%d lines from %.20q", n, out.String())
	}
}

// TestTailOfALogThatGrows asks for the last lines of a log that is written to at the
// same time.
func TestTailOfALogThatGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(n int) {
		for i := range n {
			if _, err := fmt.Fprintf(f, "2026-01-01T00:00:00Z stdout F line %d\n", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(5000)
	n := 0
	out := &reader{func(p []byte) {
		write(100)
		n += bytes.Count(p, []byte{'\n'})
	}}
	if err := Read(t.Context(), path, Options{Tail: ptr.To[int64](3000)}, out, nil, nil); err != nil || n != 3000 {
		t.Errorf("%d lines, %v", n, err)
	}
}

// TestTailOfALineThatIsBeingWritten finds the half of a line at the end.
func TestTailOfALineThatIsBeingWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample+"2026-01-01T00:00:05Z stdout F fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int64]string{0: "", 1: "four\n", 2: "\nfour\n", 99: "one\ntwo\nthree\n\nfour\n"} {
		var b bytes.Buffer
		if err := Read(t.Context(), path, Options{Tail: &n}, &b, &b, nil); err != nil || b.String() != want {
			t.Errorf("%d lines: %q, %v; want %q", n, b.String(), err, want)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at, err := tailOffset(f, 0); err != nil || at != int64(len(sample)) { // a follower waits for the rest of it
		t.Errorf("from now on begins at %d of %d, %v", at, len(sample), err)
	}
}

type reader struct{ got func([]byte) }

func (r *reader) Write(p []byte) (int, error) {
	r.got(p)
	return len(p), nil
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFollowSurvivesRotationAndEndsWithTheContainer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var f *os.File
	open := func() error {
		n, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if f != nil {
			f.Close()
		}
		f = n
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	defer func() { f.Close() }()
	write := func(i int) {
		fmt.Fprintf(f, "2026-01-01T00:00:00Z stdout F %d\n", i)
	}
	var out syncBuffer
	ended, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { done <- Read(ctx, path, Options{Follow: true}, &out, &out, ended) }()
	want := ""
	for i := range 60 {
		write(i)
		want += fmt.Sprintln(i)
		if i%10 == 9 {
			if err := Rotate(path, 1, 3, time.Now(), open); err != nil {
				t.Fatal(err)
			}
		}
		if i%7 == 0 {
			await(t, fmt.Sprint("line ", i), func() bool { return out.String() == want })
		}
	}
	write(60)
	want += "60\n"
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("lines were lost: %q", out.String())
	}
	files, _ := filepath.Glob(path + "*")
	if len(files) != 3 {
		t.Errorf("%d files are left, want 3", len(files))
	}
}

func TestRotateGivesTheNameBackWhenReopenFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rotate(path, 1, 5, time.Now(), func() error { return os.ErrDeadlineExceeded }); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
