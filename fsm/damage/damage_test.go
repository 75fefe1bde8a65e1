package damage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// TestCases: each case changes the file that it names, and every part of a format
// has one.
func TestCases(t *testing.T) {
	t.Parallel()
	dir, older := t.TempDir(), t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "a.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for name, n := range map[string]int{"few": 3, "many": 400} {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			for i := range n {
				if err := b.Put([]byte{byte(i >> 8), byte(i)}, bytes.Repeat([]byte("v"), 50)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		err = db.Close()
	}
	for name, content := range map[string]string{
		"b.json": `{"name": "x\"y", "list": [12, true]}`, "c.pem": "-----BEGIN A KEY-----\nQUJDREVG\n-----END A KEY-----\n", "d.txt": "text", "empty": "",
	} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(older, "d.txt"), []byte("older text"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cases, err := Cases(dir, older, func(file string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, c := range cases {
		all.WriteString(c.String() + "\n")
		path := filepath.Join(dir, c.File)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Apply(dir); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(path); err == nil && bytes.Equal(after, before) && len(before) > 0 {
			t.Errorf("%s: it is as it was", c)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		"a.db: deleted", "a.db: cut at a page", "meta page 1, transaction", "leaf of root 1, element 1, value size", "branch of many 1, element 0, page",
		"leaf of many 3, count", "leaf of few 1, element 2, end of the value", "free page",
		`b.json: flipped: begin of string "name"`, `first digit of "12"`, `',' at`, "c.pem: flipped: type at the end of PEM block 1", "d.txt: an older version", "empty: a byte more",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no case %q", want)
		}
	}
	if t.Failed() {
		t.Log(all.String())
	}
}
