package membership

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm/damage"
)

// TestDamagedIdentity: an agent with a damaged file refuses, with its name and what
// to do, or has the same key and certificate; what is there stays.
func TestDamagedIdentity(t *testing.T) {
	b := newBench(t)
	n := joined(t, b, "n1", "abcdefgh")
	wantCert, wantKey, err := n.PEM()
	if err != nil {
		t.Fatal(err)
	}
	cases, err := damage.Cases(n.c.Dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	first := func(b []byte) string { block, _ := pem.Decode(b); return string(block.Bytes) }
	refused, same := 0, 0
	for _, d := range cases {
		c := n.c
		c.Dir = filepath.Join(t.TempDir(), "agent")
		if err := os.CopyFS(c.Dir, os.DirFS(n.c.Dir)); err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(c.Dir); err != nil {
			t.Fatal(err)
		}
		got, err := OpenIdentity(c)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), d.File) || !strings.Contains(err.Error(), "skiff reset") {
				t.Errorf("%s: the error does not help: %v", d, err)
			}
			continue
		}
		same++
		if !got.Joined() {
			if d.File != CertFile || d.What != "deleted" {
				t.Errorf("%s: it has not joined any more", d)
			}
			continue
		}
		cert, key, err := got.PEM()
		if err != nil || string(key) != string(wantKey) || first(cert) != first(wantCert) {
			t.Errorf("%s: it has another identity: %v", d, err)
		}
	}
	t.Logf("%d damages refused, %d without effect", refused, same)
}
