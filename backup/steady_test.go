package backup

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
)

// TestSteady: what is written is what arrives, and the disk is told in time.
func TestSteady(t *testing.T) {
	content := make([]byte, 3*steadyStep+12345)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &steady{f: f}
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 100_000)
		if got, err := s.Write(rest[:n]); got != n || err != nil {
			t.Fatalf("wrote %d of %d: %v", got, n, err)
		}
		if s.n-s.to >= steadyStep {
			t.Fatalf("%d bytes wait unsaid", s.n-s.to)
		}
		rest = rest[n:]
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
	f.Close()
	if _, err := s.Write(content[:steadyStep]); err == nil {
		t.Error("wrote to a closed file")
	}
}
