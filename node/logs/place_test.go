package logs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// put makes the logs of a container's attempts, and the links to them.
func put(t *testing.T, p Place, pod, uid string, attempts ...string) (folder string) {
	t.Helper()
	folder = p.Folder("ns", pod, uid)
	if err := p.Make(folder, uid); err != nil {
		t.Fatal(err)
	}
	for _, n := range attempts {
		log := filepath.Join(folder, "c", n+".log")
		write(t, log)
		if err := Link(folder, pod, "ns", "c", "id"+uid+n, log); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

// TestSharedDirectory: two nodes and somebody else keep logs in one directory, and
// nobody removes what is another's.
func TestSharedDirectory(t *testing.T) {
	dir := t.TempDir()
	pods, links := filepath.Join(dir, "pods"), filepath.Join(dir, "containers")
	one := Place{Dir: pods, DataDir: filepath.Join(dir, "one")}
	two := Place{Dir: pods, DataDir: filepath.Join(dir, "two")}
	put(t, one, "a", "1", "0")
	put(t, one, "b", "2", "0")
	put(t, two, "c", "3", "0")
	write(t, filepath.Join(pods, "ns_d_4", "c", "0.log"))
	write(t, filepath.Join(links, "file.log"))
	for name, to := range map[string]string{"dead.log": filepath.Join(pods, "ns_d_4", "c", "9.log"), "foreign.log": filepath.Join(pods, "ns_d_4", "c", "0.log")} {
		if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	wantNames(t, pods, "ns_a_1", "ns_b_2", "ns_c_3", "ns_d_4")
	wantNames(t, links, "a_ns_c-id10.log", "b_ns_c-id20.log", "c_ns_c-id30.log", "dead.log", "file.log", "foreign.log")
	if b, err := os.ReadFile(filepath.Join(links, "a_ns_c-id10.log")); err != nil || string(b) != sample {
		t.Errorf("a link leads to %q, %v", b, err)
	}

	if err := one.Sweep(func(uid string) bool { return uid == "2" }); err != nil {
		t.Error(err)
	}
	wantNames(t, pods, "ns_b_2", "ns_c_3", "ns_d_4")
	wantNames(t, links, "b_ns_c-id20.log", "c_ns_c-id30.log", "dead.log", "file.log", "foreign.log")
	if err := one.Remove("ns", "b", "2"); err != nil {
		t.Error(err)
	}
	if err := one.Remove("ns", "d", "4"); err != nil { // which it knows nothing of
		t.Error(err)
	}
	wantNames(t, pods, "ns_c_3", "ns_d_4")
	if f := two.Folders(); !slices.Equal(f, []string{filepath.Join(pods, "ns_c_3")}) {
		t.Errorf("the other's folders are %q", f)
	}
	if err := two.Clear(); err != nil {
		t.Error(err)
	}
	wantNames(t, pods, "ns_d_4")
	wantNames(t, links, "dead.log", "file.log", "foreign.log")
	wantNames(t, two.records())
}

// TestClear leaves no empty directories.
func TestClear(t *testing.T) {
	dir := t.TempDir()
	p := Place{Dir: filepath.Join(dir, "log", "pods"), DataDir: filepath.Join(dir, "node")}
	if err := p.Clear(); err != nil {
		t.Error(err)
	}
	put(t, p, "a", "1", "0")
	if err := p.Clear(); err != nil {
		t.Error(err)
	}
	wantNames(t, filepath.Join(dir, "log"))
}

// TestFolderOfAPodStays, whatever directory is chosen later.
func TestFolderOfAPodStays(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "node")
	own := Place{Dir: filepath.Join(data, "logs"), DataDir: data}
	first := Place{Dir: filepath.Join(dir, "x", "pods"), DataDir: data}
	second := Place{Dir: filepath.Join(dir, "y", "pods"), DataDir: data}
	inside, outside := put(t, own, "a", "1", "0"), put(t, first, "b", "2", "0")
	wantNames(t, own.records(), "2")
	for _, p := range []Place{own, first, second} {
		if got := p.Folder("ns", "a", "1"); got != inside {
			t.Errorf("%s: the pod of the old layout has %s", p.Dir, got)
		}
		if got := p.Folder("ns", "b", "2"); got != outside {
			t.Errorf("%s: the pod has %s, want %s", p.Dir, got, outside)
		}
		if got, want := p.Folder("ns", "c", "3"), filepath.Join(p.Dir, "ns_c_3"); got != want {
			t.Errorf("a new pod gets %s, want %s", got, want)
		}
	}
	for uid, name := range map[string]string{"1": "a", "2": "b"} {
		if err := second.Remove("ns", name, uid); err != nil {
			t.Error(err)
		}
	}
	wantNames(t, own.Dir)
	wantNames(t, first.Dir)
	wantNames(t, filepath.Join(dir, "x", "containers"))
	wantNames(t, own.records())
}

// TestRecordThatIsWrong leads to no removal.
func TestRecordThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	p := Place{Dir: filepath.Join(dir, "pods"), DataDir: filepath.Join(dir, "node")}
	put(t, p, "a", "1", "0")
	for uid, to := range map[string]string{"2": p.Dir, "3": "relative_3", "4": filepath.Join(p.Dir, "ns_a_1")} {
		if err := os.Symlink(to, filepath.Join(p.records(), uid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Sweep(func(uid string) bool { return uid == "1" }); err == nil || !strings.Contains(err.Error(), filepath.Join(p.records(), "2")) {
		t.Errorf("what is wrong is not told: %v", err)
	}
	wantNames(t, p.Dir, "ns_a_1")
	wantNames(t, p.records(), "1")
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	links := filepath.Join(dir, "containers")
	p := Place{Dir: filepath.Join(dir, "pods"), DataDir: filepath.Join(dir, "node")}
	long := strings.Repeat("p", 240)
	folder := put(t, p, "a", "1", "0", "1")
	wantNames(t, links, "a_ns_c-id10.log", "a_ns_c-id11.log")

	t.Run("long name", func(t *testing.T) {
		name := linkName(long, "ns", "c", strings.Repeat("0", 64))
		if len(name) != 255 || !strings.HasPrefix(name, long+"_ns_c-0") || !strings.HasSuffix(name, "0.log") {
			t.Errorf("%d bytes: %s", len(name), name)
		}
		write(t, filepath.Join(folder, "c", "7.log"))
		for _, log := range []string{"0.log", "7.log"} { // of two attempts: the names are cut to the same
			if err := Link(folder, long, "ns", "c", strings.Repeat("0", 64)+log, filepath.Join(folder, "c", log)); err != nil {
				t.Error(err)
			}
		}
		if to, err := os.Readlink(filepath.Join(links, name)); err != nil || filepath.Base(to) != "7.log" {
			t.Errorf("%s %v, want the newest", to, err)
		}
	})
	t.Run("foreign", func(t *testing.T) {
		write(t, filepath.Join(links, "b_ns_c-id.log"))
		log := filepath.Join(folder, "c", "0.log")
		if err := Link(folder, "b", "ns", "c", "id", log); err == nil {
			t.Error("a file was replaced")
		}
		if b, err := os.ReadFile(filepath.Join(links, "b_ns_c-id.log")); err != nil || string(b) != sample {
			t.Errorf("%q %v", b, err)
		}
		if err := Link(folder, "a", "ns", "c", "id10", log); err != nil {
			t.Errorf("once more: %v", err)
		}
	})
	t.Run("other directory", func(t *testing.T) {
		other := put(t, Place{Dir: filepath.Join(dir, "other", "logs"), DataDir: p.DataDir}, "o", "9", "0")
		wantNames(t, filepath.Join(dir, "other"), "logs")
		if err := (Place{DataDir: p.DataDir}).Remove("ns", "o", "9"); err != nil {
			t.Error(err)
		}
		wantNames(t, filepath.Dir(other))
	})
}

// TestLinksFollowTheLogs through rotations, until an attempt's log is removed.
func TestLinksFollowTheLogs(t *testing.T) {
	dir := t.TempDir()
	links := filepath.Join(dir, "containers")
	p := Place{Dir: filepath.Join(dir, "pods"), DataDir: filepath.Join(dir, "node")}
	folder := put(t, p, "a", "1", "0", "1", "2")
	path := filepath.Join(folder, "c", "2.log")
	begin := func() error {
		if err := p.Sweep(func(string) bool { return true }); err != nil { // in the middle of a rotation
			t.Error(err)
		}
		return os.WriteFile(path, []byte("new"), 0o600)
	}
	r := &Rotator{MaxSize: 1, MaxFiles: 3}
	if _, err := r.Look(time.Now(), []File{{Path: path, Reopen: begin}}); err != nil {
		t.Fatal(err)
	}
	wantNames(t, links, "a_ns_c-id11.log", "a_ns_c-id12.log")
	if b, err := os.ReadFile(filepath.Join(links, "a_ns_c-id12.log")); err != nil || string(b) != "new" {
		t.Errorf("after a rotation the link leads to %q, %v", b, err)
	}
}
