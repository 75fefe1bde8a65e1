package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/volume"
)

func TestFromEnvFile(t *testing.T) {
	for _, tc := range []struct{ text, value, err string }{
		{"A='1'\nK='v'\n", "v", ""},
		{"# K='no'\n\n \t K='v' # why\n", "v", ""},
		{"K='two\nlines'", "two\nlines", ""},
		{"A='x\nK=no'\nK='$HOME \"'", `$HOME "`, ""},
		{"K='v'\r\n", "v", ""},
		{"K= 'v'", "", ""},
		{"K=''", "", ""},
		{"K='v'\nbroken", "v", ""}, // it is read up to the key
		{"broken\nK='v'", "", "line 1: missing '='"},
		{"K = 'v'", "", "line 1: white space before '='"},
		{"='v'", "", "line 1: no name"},
		{"A='1'\nK=v", "", "line 2: the value must be in single quotes"},
		{"K='v", "", "line 1: the single quote is not closed"},
		{"K='v'w", "", "line 1: unexpected text"},
	} {
		value, found, err := fromEnvFile(tc.text, "K")
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %s", tc.text, err, tc.err)
			}
			continue
		}
		if err != nil || !found || value != tc.value {
			t.Errorf("%q: %q, %v, %v; want %q", tc.text, value, found, err, tc.value)
		}
	}
	if _, found, err := fromEnvFile("A='1'\n", "K"); found || err != nil {
		t.Errorf("a key that is not there: %v, %v", found, err)
	}
}

func TestVariableFromFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("K='v'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	e := env{volume: func(name string) (volume.Mounted, bool) { return volume.Mounted{Path: dir}, name == "vol" }}
	for _, tc := range []struct {
		vol, path, key string
		optional       bool
		value          string
		found          bool
		err            string
	}{
		{vol: "vol", path: "env", key: "K", value: "v", found: true},
		{vol: "vol", path: "env", key: "L", err: `key "L" not found in file "env"`},
		{vol: "vol", path: "env", key: "L", optional: true},
		{vol: "vol", path: "no", key: "K", err: "no such file"},
		{vol: "vol", path: "no", key: "K", optional: true},
		{vol: "vol", path: "link", key: "K", optional: true, err: "leads out of the volume"},
		{vol: "vol", path: "dir", key: "K", err: "no regular file"},
		{vol: "other", path: "env", key: "K", err: `cannot find the volume "other"`},
	} {
		value, found, err := e.fileValue(&v1.FileKeySelector{VolumeName: tc.vol, Path: tc.path, Key: tc.key, Optional: ptr.To(tc.optional)})
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%+v: error %v", tc, err)
			}
		} else if err != nil || value != tc.value || found != tc.found {
			t.Errorf("%+v: %q, %v, %v", tc, value, found, err)
		}
	}
}
