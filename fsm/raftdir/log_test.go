package raftdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func open(t *testing.T, dir string, snapshot uint64) (*Log, Contents, error) {
	t.Helper()
	if err := os.MkdirAll(Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	l, c, err := OpenLog(Options{DataDir: dir, SnapshotIndex: snapshot, Reserve: 1 << 20})
	if err == nil {
		t.Cleanup(func() { l.Close() })
	}
	return l, c, err
}

func mustOpen(t *testing.T, dir string) (*Log, Contents) {
	t.Helper()
	l, c, err := open(t, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func entries(from, to uint64, size int) (out []*raft.Log) {
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: 1 + i/10, Data: bytes.Repeat([]byte{byte(i)}, size), Extensions: []byte("ext")[:i%4]})
	}
	return out
}

func TestLogKeepsEntries(t *testing.T) {
	dir := t.TempDir()
	l, c := mustOpen(t, dir)
	if c != (Contents{}) {
		t.Errorf("a new log contains %+v", c)
	}
	var told int
	l.OnAppend = func(n int, _ int64) { told += n }
	in := entries(1, 30, 100)
	if err := l.StoreLogs(in); err != nil {
		t.Fatal(err)
	}
	if told != 30 || l.LastTerm() != 4 || l.Appends.Stats().Count != 1 {
		t.Errorf("told of %d entries, last term %d, %d appends", told, l.LastTerm(), l.Appends.Stats().Count)
	}
	if err := l.SetUint64([]byte("CurrentTerm"), 9); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l, c = mustOpen(t, dir)
	if c.First != 1 || c.Last != 30 || c.Bytes != 30*(100+entryOverhead) || l.LastTerm() != 4 {
		t.Errorf("it contains %+v, last term %d", c, l.LastTerm())
	}
	for _, want := range in {
		var got raft.Log
		if err := l.GetLog(want.Index, &got); err != nil {
			t.Fatal(err)
		}
		if got.Term != want.Term || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) {
			t.Errorf("entry %d is %+v, was %+v", want.Index, got, want)
		}
	}
	if term, err := l.GetUint64([]byte("CurrentTerm")); term != 9 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
	if _, err := l.GetUint64([]byte("nothing")); err == nil || err.Error() != "not found" {
		t.Errorf("raft compares this text: %v", err)
	}
}

func TestLogAndSnapshotMustMeet(t *testing.T) {
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	if err := l.SetUint64([]byte(keyTerm), 9); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLogs(entries(1, 30, 10)); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteRange(1, 9); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteRange(15, 15); err != nil {
		t.Fatal(err)
	}
	l.Close()
	for snapshot, ok := range map[uint64]bool{0: false, 8: false, 9: false, 14: false, 15: true, 25: true, 40: true} {
		l, _, err := open(t, dir, snapshot)
		if (err == nil) != ok || (err != nil && !errors.Is(err, ErrDamaged)) {
			t.Errorf("log 10-14, 16-30 with a snapshot to %d: %v", snapshot, err)
		}
		if err == nil {
			l.Close()
		}
	}
}

// TestEveryPageIsChecked flips bits all over a log, in steps that reach each kind
// of field: it is refused, or nothing is lost.
func TestEveryPageIsChecked(t *testing.T) {
	dir := t.TempDir()
	l, _ := mustOpen(t, dir)
	in := entries(1, 60, 300)
	for i := 0; i < len(in); i += 6 {
		if err := l.StoreLogs(in[i : i+6]); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	good, err := os.ReadFile(LogPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for at := 0; at < len(good); at += 307 {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 7)
		if err := os.WriteFile(LogPath(dir), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l, c, err := open(t, dir, 0)
		if err != nil {
			refused++
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("byte %d: %v", at, err)
			}
			continue
		}
		if c.Last != 60 && !(c.Stale && c.Last == 54) {
			t.Errorf("byte %d: the log ends at %d without a word", at, c.Last)
		}
		for _, want := range in[:c.Last] {
			var got raft.Log
			if err := l.GetLog(want.Index, &got); err != nil || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("byte %d: entry %d is another: %v", at, want.Index, err)
			}
		}
		l.Close()
	}
	t.Logf("%d of %d flips were refused", refused, len(good)/307)
	if refused < 50 {
		t.Errorf("only %d flips were refused", refused)
	}
	for n := 1; n < len(good); n += 5111 {
		if err := os.WriteFile(LogPath(dir), good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if l, c, err := open(t, dir, 0); err == nil {
			if c.Last != 60 { // only free pages were cut off
				t.Errorf("cut to %d: the log ends at %d without a word", n, c.Last)
			}
			l.Close()
		}
	}
}

// TestSetWaitsForSpace: the answer to Set must not be an error, for raft panics.
func TestSetWaitsForSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	for _, how := range []string{"space comes", "it is interrupted"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			if err := syscall.Mount("skiff-test", dir, "tmpfs", 0, "size=8388608"); err != nil {
				t.Skipf("can't mount a tmpfs here: %v", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
			l, _ := mustOpen(t, dir)
			ballast := filepath.Join(dir, "ballast")
			if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			var err error
			i := uint64(1)
			for ; err == nil && l.Room() == nil; i++ { // the last of these is stored in the reserve
				err = l.StoreLogs(entries(i, i, 20_000))
			}
			if err != nil || !errors.Is(l.Room(), ErrNoSpace) {
				t.Fatalf("append with the reserve: %v, room: %v", err, l.Room())
			}
			for size := 20_000; size > 0; i++ { // to the very last page
				if err := l.StoreLogs(entries(i, i, size)); err != nil {
					if !errors.Is(err, ErrNoSpace) {
						t.Fatal(err)
					}
					size /= 2
				}
			}
			done, set := make(chan struct{}), false
			go func() {
				defer close(done)
				err := l.Set([]byte("key"), make([]byte, 5<<19)) // too much for what pages bolt has left
				set = err == nil
			}()
			select {
			case <-done:
				t.Fatal("Set did not wait")
			case <-time.After(300 * time.Millisecond):
			}
			if how == "space comes" {
				os.Remove(ballast)
			} else {
				l.Interrupt()
			}
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Fatal("Set waits for ever")
			}
			if set != (how == "space comes") {
				t.Errorf("Set returned %v", set)
			}
		})
	}
}

func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	m := Member{ID: "a", Addr: "host:1"}
	state := func(w io.Writer) error { _, err := io.WriteString(w, "state"); return err }
	boom := errors.New("boom")
	if err := Create(dir, m, 20, 3, func(io.Writer) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("with a failing source: %v", err)
	}
	os.RemoveAll(dir)
	if err := Create(dir, m, 20, 3, state); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, m, 20, 3, state); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second time: %v", err)
	}
	s, err := OpenSnapshots(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if err != nil || len(all) != 1 || all[0].Index != 20 || all[0].Term != 3 || fmt.Sprint(all[0].Configuration.Servers) != "[{Voter a host:1}]" {
		t.Fatalf("snapshots %+v, %v", all, err)
	}
	if b, _ := os.ReadFile(s.Files()[0]); string(b) != "state" {
		t.Errorf("state %q", b)
	}
	l, c, err := open(t, dir, 20)
	if err != nil || c.Last != 0 {
		t.Fatalf("log %+v, %v", c, err)
	}
	if term, err := l.GetUint64([]byte("CurrentTerm")); term != 3 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
}

func TestUnfinishedSnapshotsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(Path(dir), "snapshots", "2-3-4.tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSnapshots(dir, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestLatency(t *testing.T) {
	var l Latency
	if s := l.Stats(); s.Count != 0 || s.P99 != 0 {
		t.Errorf("of nothing: %+v", s)
	}
	for i := range 1000 {
		l.Observe(time.Duration(i+1) * time.Millisecond)
	}
	s := l.Stats() // the latest are 489 ms to 1 s
	if s.Count != 1000 || s.P50 != 745*time.Millisecond || s.P99 != 995*time.Millisecond || s.Max != time.Second {
		t.Errorf("%+v", s)
	}
	if s.Buckets[0.1] != 100 || s.Buckets[0.0001] != 0 || s.Buckets[5] != 1000 {
		t.Errorf("buckets %v", s.Buckets)
	}
}
