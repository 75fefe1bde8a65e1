// Package golden keeps, for tests, what each release has written: logs, data
// directories, messages. They lie in testdata/v<release> of the package that owns
// them, and every later version has to read those of all releases.
//
// Tests that import it have the flag -update, which writes the files of Version
// anew, and of no other: those of a version that CHANGELOG.md lists as released are
// never touched.
package golden

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Version is the release that the working tree becomes.
const Version = "0.1.0"

var update = flag.Bool("update", false, "write the golden files of "+Version+" anew")

// Update says whether files are to be written. The test fails if Version is
// released.
func Update(t testing.TB) bool {
	t.Helper()
	if *update {
		b, err := os.ReadFile(filepath.Join(root(t), "CHANGELOG.md"))
		if err != nil {
			t.Fatal(err)
		}
		if released(string(b), Version) {
			t.Fatalf("the golden files of %s are not written: CHANGELOG.md says that it is released; raise golden.Version", Version)
		}
	}
	return *update
}

// released says whether a changelog has a section of the version.
func released(changelog, version string) bool {
	return regexp.MustCompile(`(?m)^##+ +\[?v?` + regexp.QuoteMeta(version) + `\b`).MatchString(changelog)
}

// root is the directory with go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("no go.mod above the test: %v", err)
	return ""
}

// Fresh is the empty directory testdata/v<Version>/name, for files that are
// written anew.
func Fresh(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join("testdata", "v"+Version, name)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Each runs a test for testdata/v*/name of every release that has it; there must be
// one of Version.
func Each(t *testing.T, name string, do func(t *testing.T, dir string)) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join("testdata", "v*", name))
	if err != nil {
		t.Fatal(err)
	}
	have := false
	for _, dir := range dirs {
		version := strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "v")
		have = have || version == Version
		t.Run(version, func(t *testing.T) { do(t, dir) })
	}
	if !have {
		t.Errorf("there are no golden files of %s: go test -run %s -update", Version, t.Name())
	}
}

// Copy copies a directory to a temporary one, with files that only the owner
// reads, so that a test can go on with it.
func Copy(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	err := os.CopyFS(to, os.DirFS(dir))
	if err == nil {
		err = filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.Chmod(path, 0o600)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// WriteJSON writes v to a file, and ReadJSON reads it.
func WriteJSON(t testing.TB, path string, v any) {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ReadJSON reads a file into a new T.
func ReadJSON[T any](t testing.TB, path string) (v T) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}
