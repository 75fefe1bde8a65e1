package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// host is a node with a folder of manifests.
type host struct {
	t       *testing.T
	dir     string
	records string
	folder  *Folder
	every   time.Duration
	stop    func()

	mu      sync.Mutex
	run     map[types.UID]*v1.Pod
	log     []string // what was asked, in order
	reports []string
}

func newHost(t *testing.T) *host {
	h := &host{t: t, every: time.Second, dir: filepath.Join(t.TempDir(), "manifests"), records: filepath.Join(t.TempDir(), "records")}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.stop != nil {
			h.stop()
		}
	})
	return h
}

// start begins anew, as skiff does.
func (h *host) start() {
	h.t.Helper()
	if h.stop != nil {
		h.stop()
	}
	f, err := Open(Config{Dir: h.dir, Records: h.records, Node: "n1", Prepare: defaults, every: h.every, Logger: slog.New(slog.DiscardHandler), Report: func(file string, err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.reports = append(h.reports, filepath.Base(file)+": "+err.Error())
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.folder, h.run, h.log = f, map[types.UID]*v1.Pod{}, nil
	for _, p := range f.Begin() {
		h.AddStatic(p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx, h) }()
	h.stop = func() { cancel(); <-done; h.stop = nil }
}

func (h *host) AddStatic(p *v1.Pod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.run[p.UID] = p
	h.log = append(h.log, "add "+p.Name)
}

func (h *host) RemoveStatic(uid types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, "remove "+h.run[uid].Name)
	delete(h.run, uid)
}

// pods are those that run: name, and image of their first container.
func (h *host) pods() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, p := range h.run {
		out = append(out, p.Name+"="+p.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (h *host) asked() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.log, ", ")
}

func (h *host) reported(part string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.reports, func(r string) bool { return strings.Contains(r, part) })
}

func (h *host) write(name, text string) {
	h.t.Helper()
	tmp := filepath.Join(h.dir, ".new")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(h.dir, name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) await(want string) {
	h.t.Helper()
	h.until(want, func() bool { return h.pods() == want })
}

func (h *host) until(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("never: %s; there is %q after %s; reports %q", what, h.pods(), h.asked(), h.reports)
		}
	}
}

func podYAML(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers:\n  - name: c\n    image: %s\n  - name: d\n    image: other\n", name, image)
}

func TestFolder(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", podYAML("a", "v1"))
	h.write(".hidden.yaml", podYAML("hidden", "v1"))
	if err := os.Mkdir(filepath.Join(h.dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.start()
	if h.pods() != "a-n1=v1" { // at once, not when Run has looked
		t.Errorf("at start: %q", h.pods())
	}
	h.write("b.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{"containers":[{"name":"c","image":"v1"}]}}`)
	h.await("a-n1=v1 b-n1=v1")
	h.write("a.yaml", podYAML("a", "v2"))
	h.await("a-n1=v2 b-n1=v1")
	if got := h.asked(); got != "add a-n1, add b-n1, remove a-n1, add a-n1" {
		t.Errorf("asked: %s", got)
	}
	if err := os.Rename(filepath.Join(h.dir, "b.json"), filepath.Join(h.dir, "renamed")); err != nil {
		t.Fatal(err)
	}
	h.write("c.yaml", podYAML("c", "v1"))
	h.await("a-n1=v2 b-n1=v1 c-n1=v1")
	if got := h.asked(); strings.Contains(got, "remove b") {
		t.Errorf("a renamed manifest is another pod: %s", got)
	}
	for _, name := range []string{"a.yaml", "renamed"} {
		if err := os.Remove(filepath.Join(h.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.await("c-n1=v1")
	if entries, _ := os.ReadDir(h.records); len(entries) != 1 {
		t.Errorf("records: %v", entries)
	}
}

func TestFolderThatComesLaterAndGoes(t *testing.T) {
	h := newHost(t)
	if err := os.Remove(h.dir); err != nil {
		t.Fatal(err)
	}
	h.every = time.Hour // what follows is seen at once
	h.start()
	staging := h.dir + ".new"
	if err := os.Mkdir(staging, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(staging, "a"), []byte(podYAML("a", "v1")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(staging, h.dir); err != nil {
		t.Fatal(err)
	}
	h.await("a-n1=v1")
	if err := os.RemoveAll(h.dir); err != nil {
		t.Fatal(err)
	}
	h.await("")
}

func TestBadManifestChangesNothing(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", podYAML("a", "v1"))
	h.write("b.yaml", "kind: nonsense")
	h.write("c.yaml", podYAML("c", "v1"))
	h.start()
	h.await("a-n1=v1 c-n1=v1") // one bad one does not matter to the others
	if !h.reported("b.yaml: ") {
		t.Errorf("reports %q", h.reports)
	}
	h.write("a.yaml", podYAML("a", "v2")+"    bogus: 1\n")
	h.until("it is told", func() bool {
		return h.reported(`unknown field "spec.containers[1].bogus"; the pod default/a-n1 goes on as it was`)
	})
	h.write("b.yaml", podYAML("b", "v1"))
	h.await("a-n1=v1 b-n1=v1 c-n1=v1")
	h.start() // also after a restart
	h.await("a-n1=v1 b-n1=v1 c-n1=v1")
	h.write("a.yaml", podYAML("a", "v3"))
	h.await("a-n1=v3 b-n1=v1 c-n1=v1")
	h.write("a.yaml", "")
	h.until("it is told", func() bool { return h.reported("a.yaml: there is nothing in it") })
	if err := os.Remove(filepath.Join(h.dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	h.await("b-n1=v1 c-n1=v1")
}

func TestManifestThatIsBeingWritten(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", podYAML("a", "v1"))
	h.start()
	text := podYAML("a", "v2")
	half := strings.Index(text, "  - name: d") // good YAML and a good pod, but another one
	f, err := os.OpenFile(filepath.Join(h.dir, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text[:half]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readWhole(filepath.Join(h.dir, "a.yaml")); !errors.Is(err, errBusy) {
		t.Errorf("half a file is read: %v", err)
	}
	time.Sleep(3 * gather)
	if h.pods() != "a-n1=v1" || len(h.reports) > 0 {
		t.Errorf("half of a manifest has changed the pod: %s, %q", h.asked(), h.reports)
	}
	if _, err := f.WriteString(text[half:]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	h.await("a-n1=v2")
	if got := h.asked(); got != "add a-n1, remove a-n1, add a-n1" {
		t.Errorf("asked: %s", got)
	}
	for _, p := range h.run {
		if len(p.Spec.Containers) != 2 {
			t.Errorf("half a pod runs: %v", p.Spec.Containers)
		}
	}
}

func TestTwoManifestsOfOnePod(t *testing.T) {
	h := newHost(t)
	h.write("b.yaml", podYAML("a", "v1"))
	h.start()
	h.write("a.yaml", podYAML("a", "v2")) // it comes first by its name, but the other runs
	h.until("it is told", func() bool { return h.reported("a.yaml: " + h.dir + "/b.yaml has the pod default/a-n1 already") })
	h.start()
	h.await("a-n1=v1")
	if err := os.Remove(filepath.Join(h.dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	h.await("a-n1=v2")
}

func TestStatusIsKept(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", podYAML("a", "v1"))
	h.write("b.yaml", podYAML("b", "v1"))
	h.start()
	set := func(name string, st v1.PodStatus) {
		for _, p := range h.run {
			if p.Name == name {
				next := *p
				next.Status = st
				if err := h.folder.Keep(&next); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	status := func(name string) (st v1.PodStatus) {
		for _, p := range h.run {
			if p.Name == name {
				st = p.Status
			}
		}
		return st
	}
	set("a-n1", v1.PodStatus{Phase: v1.PodSucceeded, ContainerStatuses: []v1.ContainerStatus{{Name: "c", RestartCount: 3}}})
	set("b-n1", v1.PodStatus{Phase: v1.PodFailed, Reason: "Terminated", ContainerStatuses: []v1.ContainerStatus{ // the node was shut down
		{Name: "c", RestartCount: 5, State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 143}}}}})
	h.start()
	if st := status("a-n1"); st.Phase != v1.PodSucceeded || st.ContainerStatuses[0].RestartCount != 3 {
		t.Errorf("%+v", st)
	}
	if st := status("b-n1"); st.Phase != v1.PodPending || st.Reason != "" || st.ContainerStatuses[0].RestartCount != 5 {
		t.Errorf("%+v", st)
	}
	// A damaged record is none; what is gone has none.
	files, err := filepath.Glob(filepath.Join(h.records, "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(`{"pod":{`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.stop()
	if err := os.Remove(filepath.Join(h.dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	h.start()
	if st := status("a-n1"); h.pods() != "a-n1=v1" || st.Phase != v1.PodPending {
		t.Errorf("%s, %+v", h.pods(), st)
	}
	if files, _ := filepath.Glob(filepath.Join(h.records, "*")); len(files) != 1 {
		t.Errorf("%v", files)
	}
	if err := h.folder.Keep(&v1.Pod{}); err != nil { // of a pod that is not to run any more
		t.Error(err)
	}
}

func TestFileThatIsNoManifest(t *testing.T) {
	h := newHost(t)
	if err := os.WriteFile(filepath.Join(h.dir, "huge"), make([]byte, maxManifest+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere", filepath.Join(h.dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(h.dir, "device")); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "real")
	if err := os.WriteFile(target, []byte(podYAML("linked", "v1")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(h.dir, "good")); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.await("linked-n1=v1")
	for _, want := range []string{"huge: ", "link: stat", "device: not a regular file"} {
		if !h.reported(want) {
			t.Errorf("%q is not told: %q", want, h.reports)
		}
	}
}

// TestPodRunsThoughItCannotBeRecorded is about a disk that is full when a manifest comes,
// and has room later.
func TestPodRunsThoughItCannotBeRecorded(t *testing.T) {
	h := newHost(t)
	h.start()
	if err := os.Remove(h.records); err != nil {
		t.Fatal(err)
	}
	h.write("a.yaml", podYAML("a", "one"))
	h.await("a-n1=one")
	h.mu.Lock()
	var p *v1.Pod
	for _, p = range h.run {
	}
	h.mu.Unlock()
	ran := *p
	ran.Status = v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: []v1.ContainerStatus{{Name: "c", RestartCount: 3}}}
	if err := h.folder.Keep(&ran); err == nil {
		t.Error("it is said to be kept where nothing can be")
	}
	if err := os.Mkdir(h.records, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.folder.Keep(&ran); err != nil {
		t.Fatal(err)
	}
	h.start()
	for _, p = range h.run {
	}
	if len(h.run) != 1 || len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].RestartCount != 3 {
		t.Errorf("after a restart: %+v", h.run)
	}
}

// TestManifestThatIsRenamedMeanwhile: a manifest that gets another name while the
// folder is looked at is not gone.
func TestManifestThatIsRenamedMeanwhile(t *testing.T) {
	h := newHost(t)
	h.write("a.yaml", podYAML("a", "v1"))
	f, err := Open(Config{Dir: h.dir, Records: h.records, Node: "n1", Prepare: defaults, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(h.dir, "a.yaml"), filepath.Join(h.dir, "b.yaml")
	for range 2000 {
		renamed := make(chan error, 1)
		go func() { renamed <- os.Rename(from, to) }()
		f.read()
		if got := f.wanted(); len(got) != 1 {
			t.Errorf("of the one pod there are %q", got)
		}
		if err := <-renamed; err != nil || t.Failed() {
			t.Fatal(err)
		}
		from, to = to, from
	}
}
