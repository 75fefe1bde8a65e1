package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A lost ID is not replaced by another where that would be of no use.
func TestNodeIDThatIsLost(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ beside, refused string }{
		{"", ""},
		{"pki/ca.crt", ""}, // of a join that is under way
		{"raft/raft.db", "node-id is missing"},
		{"agent/node.key", ""},
		{"agent/node.crt", "node-id is missing"},
	} {
		dir := t.TempDir()
		if tc.beside != "" {
			path := filepath.Join(dir, tc.beside)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		id, err := NodeID(dir)
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) || !strings.Contains(err.Error(), tc.beside) {
				t.Errorf("beside %s: %q, %v", tc.beside, id, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "node-id")); err == nil {
				t.Errorf("beside %s there is another now", tc.beside)
			}
			continue
		}
		again, err2 := NodeID(dir)
		if err != nil || err2 != nil || id == "" || again != id {
			t.Errorf("beside %q: %q, %v, then %q, %v", tc.beside, id, err, again, err2)
		}
	}
}
