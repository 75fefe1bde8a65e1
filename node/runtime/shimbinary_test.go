package runtime

import (
	"os"
	"testing"
)

// TestDamagedShim: what is damaged is unpacked again at the next start.
func TestDamagedShim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, err := installShim(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"whole":   func() error { return nil },
		"gone":    func() error { return os.Remove(path) },
		"empty":   func() error { return os.Truncate(path, 0) },
		"cut":     func() error { return os.Truncate(path, int64(len(want)/2)) },
		"longer":  func() error { return os.WriteFile(path, append(want[:len(want):len(want)], 0), 0o755) },
		"flipped": func() error { b := append([]byte(nil), want...); b[len(b)/3] ^= 1; return os.WriteFile(path, b, 0o755) },
		"mode":    func() error { return os.Chmod(path, 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		again, err := installShim(dir)
		if err != nil || again != path {
			t.Fatalf("%s: %s, %v", name, again, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != string(want) {
			t.Errorf("%s: it is not unpacked again: %v", name, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}
}
