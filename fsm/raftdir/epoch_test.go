package raftdir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestEpochsAreOrdered(t *testing.T) {
	first, now := Epoch{Number: 1}, time.Now()
	second := first.Next(Restored, "a", now)
	again := first.Next(Restored, "b", now.Add(time.Second))
	recovered := second.Next(Recovered, "c", now, "x", "y")
	order := []Epoch{first, second, again, recovered}
	for i, e := range order {
		for j, o := range order {
			if got := e.After(o); got != (i > j) {
				t.Errorf("%d after %d: %v", i, j, got)
			}
			if got := e.Same(o); got != (i == j) {
				t.Errorf("%d same as %d: %v", i, j, got)
			}
		}
	}
	for id, want := range map[string]bool{"x": true, "z": false} {
		if recovered.Follows(id) != want || !second.Follows(id) {
			t.Errorf("who follows: %s", id)
		}
	}
}

func TestEpochFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(Path(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if e, err := LoadEpoch(dir); err != nil || e.Number != 1 || e.ID != "" {
		t.Errorf("without a file: %+v, %v", e, err)
	}
	want := Epoch{}.Next(Recovered, "a", time.Now(), "b")
	if err := SaveEpoch(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadEpoch(dir); err != nil || !got.Same(want) || !got.At.Equal(want.At) || !got.Follows("b") {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "{", "{}"} {
		if err := os.WriteFile(epochPath(dir), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadEpoch(dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := SetUnasked(dir, true); err != nil || !Unasked(dir) {
		t.Error("not unasked", err)
	}
	for range 2 {
		if err := SetUnasked(dir, false); err != nil || Unasked(dir) {
			t.Error("still unasked", err)
		}
	}
}

// At whatever step a renewal is killed, what is there afterwards is the old state
// or the new one, whole; and the next renewal succeeds.
func TestRenewalSurvivesCrashes(t *testing.T) {
	read := func(dir string) string {
		b, _ := os.ReadFile(filepath.Join(Path(dir), "content"))
		return string(b)
	}
	fill := func(content string) func(string) error {
		return func(dir string) error {
			if err := os.Mkdir(Path(dir), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(Path(dir), "content"), []byte(content), 0o600)
		}
	}
	// never: a data dir without Raft state.
	for _, never := range []bool{false, true} {
		ended := false
		for n := 1; !ended; n++ {
			if n > 20 {
				t.Fatal("it never ends")
			}
			dir, old := t.TempDir(), ""
			if !never {
				old = "old"
				for i, c := range []string{"oldest", "older", old} {
					if _, err := Renew(dir, fill(c)); err != nil {
						t.Fatal(err)
					}
					if err := SaveEpoch(dir, Epoch{Number: uint64(i + 1), ID: "x"}); err != nil {
						t.Fatal(err)
					}
				}
				if err := SaveEpoch(dir, Epoch{Number: 7, ID: "x"}); err != nil {
					t.Fatal(err)
				}
			}
			steps, at := 0, "the end"
			func() {
				defer func() { _ = recover() }()
				if _, err := renew(dir, fill("new"), func(name string) error {
					if steps++; steps == n {
						at = name
						panic("killed")
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}()
			ended = steps < n
			if err := FinishRenewal(dir); err != nil {
				t.Fatalf("after %s: %v", at, err)
			}
			got := read(dir)
			if got != old && got != "new" || ended && got != "new" {
				t.Errorf("after %s there is %q", at, got)
			}
			if aside, _ := os.ReadFile(filepath.Join(dir, "raft.epoch-7", "content")); got == "new" && old != "" && string(aside) != old {
				t.Errorf("after %s %q was kept", at, aside)
			}
			if got != "new" {
				if _, err := Renew(dir, fill("new")); err != nil || read(dir) != "new" {
					t.Errorf("after %s a second time: %v, %q", at, err, read(dir))
				}
			}
			left, _ := filepath.Glob(filepath.Join(dir, "raft.next*"))
			if len(left) > 0 {
				t.Errorf("after %s: %v is left", at, left)
			}
			if ended && old != "" && len(asides(dir)) != 1 {
				t.Errorf("kept: %v", asides(dir))
			}
		}
	}
}
