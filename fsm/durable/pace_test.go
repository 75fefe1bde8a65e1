package durable

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPace: the disk is told in time, and a file that can't be synced is noticed.
func TestPace(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := NewPace(f)
	block := make([]byte, 100_000)
	for range 3 * paceStep / len(block) {
		n, err := f.Write(block)
		if err == nil {
			err = p.Wrote(n)
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.n-p.to >= paceStep {
			t.Fatalf("%d bytes wait unsaid", p.n-p.to)
		}
	}
	if p.to == 0 || p.from == 0 {
		t.Errorf("the disk was told nothing: %+v", p)
	}
	f.Close()
	if p.Wrote(paceStep) == nil {
		t.Error("a closed file goes unnoticed")
	}
}
