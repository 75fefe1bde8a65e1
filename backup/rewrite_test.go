package backup

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm"
)

func TestRewrite(t *testing.T) {
	path, info := save(t, sample(t, 30)) // below /registry/ and /skiff/pki/
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := fsm.Header{ClusterID: "other", Revision: info.Revision + 10, Index: 3, Term: 2}
	own := func(key string) bool { return strings.HasPrefix(key, OwnPrefix) }
	set := map[string][]byte{
		"/a": []byte("first"), "/registry/configmaps/default/c000007": []byte("changed"), "/registry/configmaps/default/c000007x": nil,
		"/skiff/pki/ca.crt": []byte("set though dropped"), "/skiff/zzz": []byte("last"),
	}
	var out bytes.Buffer
	if err := rewrite(t.Context(), bytes.NewReader(good), 0, &out, changes{hash: info.Hash, header: h, drop: own, put: set}, nil); err != nil {
		t.Fatal(err)
	}
	r, err := fsm.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for {
		kv, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[kv.Key] = string(kv.Value)
		if kv.ModRevision != h.Revision || kv.CreateRevision > h.Revision {
			t.Errorf("%s has revision %d", kv.Key, kv.ModRevision)
		}
	}
	if h.Format = 1; r.Header() != h {
		t.Errorf("header %+v, want %+v", r.Header(), h)
	}
	// 30 objects without the deleted one, no ca.key, and four that are new or kept.
	if len(got) != 29+4 || got["/skiff/pki/ca.key"] != "" {
		t.Errorf("%d keys: %v", len(got), got)
	}
	for key, value := range set {
		if v, ok := got[key]; !ok || v != string(value) {
			t.Errorf("%s holds %q, %v", key, v, ok)
		}
	}

	for name, c := range map[string]struct {
		src  []byte
		hash string
		want string
	}{
		"another hash": {good, "00", "was changed"},
		"cut":          {good[:len(good)-9], info.Hash, "truncated"},
	} {
		err := rewrite(t.Context(), bytes.NewReader(c.src), 0, io.Discard, changes{hash: c.hash, header: h}, nil)
		if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
