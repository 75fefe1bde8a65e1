package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	gather    = 200 * time.Millisecond // from the first sign of a change to looking at it
	busyAgain = 250 * time.Millisecond // a file is being written: look again
	lookEvery = 10 * time.Second       // for what has no sign: the target of a link changes, folders above come
)

// Pods runs static pods; *pod.Manager does.
type Pods interface {
	AddStatic(p *v1.Pod)
	RemoveStatic(uid types.UID)
}

// Config configures a Folder.
type Config struct {
	Dir     string // of the manifests; it may come later, and go
	Records string // directory for what the node knows of its static pods
	Node    string // its name
	// Prepare adds defaults to a pod and checks it as the API does.
	Prepare func(*v1.Pod) error
	// Report tells users of a manifest that is not used as it is.
	Report func(file string, err error)
	Logger *slog.Logger

	every time.Duration // lookEvery unless a test says otherwise
}

// Folder keeps the node's static pods as its manifests say. Its methods but Keep
// are for one goroutine.
type Folder struct {
	cfg     Config
	records *records
	files   map[string]*manifest // by name
	running map[types.UID]bool   // what Pods were told
	failed  string               // why the folder could not be read, as said last
}

// manifest is one file.
type manifest struct {
	id    fileID  // of the contents that were looked at last
	pod   *v1.Pod // what it said when it was last good; nil: never
	err   error   // why it is not good now
	clash string  // which other manifest has the same pod
}

// Open reads what is known of static pods, and then the manifests.
func Open(cfg Config) (*Folder, error) {
	if !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.Records) {
		return nil, fmt.Errorf("static pods: %q and %q must be absolute paths", cfg.Dir, cfg.Records)
	}
	if cfg.every == 0 {
		cfg.every = lookEvery
	}
	f := &Folder{cfg: cfg, files: map[string]*manifest{}, running: map[types.UID]bool{}}
	var err error
	if f.records, err = openRecords(cfg.Records, cfg.Logger); err != nil {
		return nil, err
	}
	for _, r := range f.records.all() {
		f.files[r.Manifest] = &manifest{pod: r.Pod}
		f.running[r.Pod.UID] = true
	}
	f.read()
	return f, nil
}

// Begin returns the pods that are to run from the start, with the status that
// they had. Run tells of all later changes.
func (f *Folder) Begin() []*v1.Pod {
	var out []*v1.Pod
	keep := map[types.UID]bool{}
	for _, name := range f.wanted() {
		p := f.take(name)
		keep[p.UID] = true
		out = append(out, p)
	}
	for uid := range f.running { // of manifests that are gone
		if !keep[uid] {
			f.drop(uid)
		}
	}
	return out
}

// Keep notes the status of a static pod; it is safe for concurrent use.
func (f *Folder) Keep(p *v1.Pod) error { return f.records.status(p) }

// Run follows the folder until ctx ends.
func (f *Folder) Run(ctx context.Context, pods Pods) error {
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		f.cfg.Logger.Warn("changes of manifests are seen late", "err", err, "every", f.cfg.every)
		watch = &fsnotify.Watcher{} // its channels never speak
	} else {
		defer watch.Close()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watch.Events:
			if soon := time.Now().Add(gather); ok && due.After(soon) {
				due = soon
				timer.Reset(gather)
			}
		case err, ok := <-watch.Errors:
			if ok {
				f.cfg.Logger.Warn("watching the folder of manifests", "err", err)
			}
		case <-timer.C:
			if err == nil && watch.Add(f.cfg.Dir) != nil { // it may come
				_ = watch.Add(filepath.Dir(f.cfg.Dir))
			}
			next := f.cfg.every
			if f.read() {
				next = busyAgain
			}
			f.apply(pods)
			due = time.Now().Add(next)
			timer.Reset(next)
		}
	}
}

// apply tells pods what has changed.
func (f *Folder) apply(pods Pods) {
	want := f.wanted()
	keep := map[types.UID]bool{}
	for _, name := range want {
		keep[f.files[name].pod.UID] = true
	}
	for uid := range f.running {
		if !keep[uid] {
			f.drop(uid)
			pods.RemoveStatic(uid)
		}
	}
	for _, name := range want {
		if m := f.files[name]; !f.running[m.pod.UID] {
			f.cfg.Logger.Info("static pod", "pod", m.pod.Namespace+"/"+m.pod.Name, "manifest", filepath.Join(f.cfg.Dir, name))
			pods.AddStatic(f.take(name))
		}
	}
}

// take notes that a manifest's pod runs.
func (f *Folder) take(name string) *v1.Pod {
	p := f.files[name].pod
	f.running[p.UID] = true
	p, err := f.records.put(name, p)
	if err != nil {
		f.cfg.Logger.Warn("a static pod's counters do not survive a restart of skiff", "pod", p.Namespace+"/"+p.Name, "err", err)
	}
	return p
}

func (f *Folder) drop(uid types.UID) {
	delete(f.running, uid)
	if err := f.records.drop(uid); err != nil {
		f.cfg.Logger.Warn("forgetting a static pod", "err", err)
	}
}

// wanted are the manifests whose pods are to run, in their order. Of several
// with a pod of one name, that which runs it stays, else the first one counts.
func (f *Folder) wanted() (names []string) {
	all := make([]string, 0, len(f.files))
	for name, m := range f.files {
		if m.pod != nil {
			all = append(all, name)
		}
	}
	slices.SortFunc(all, func(a, b string) int {
		if x, y := f.running[f.files[a].pod.UID], f.running[f.files[b].pod.UID]; x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	holder := map[string]string{}
	for _, name := range all {
		m := f.files[name]
		pod := m.pod.Namespace + "/" + m.pod.Name
		other, taken := holder[pod]
		if !taken {
			holder[pod], m.clash = name, ""
			names = append(names, name)
			continue
		}
		if m.clash != other {
			m.clash = other
			f.report(name, fmt.Errorf("%s has the pod %s already: remove one of the two, or change its metadata.name", filepath.Join(f.cfg.Dir, other), pod))
		}
	}
	return names
}

// read looks at the manifests that have changed; true if one is being written, or
// they are renamed all the time.
func (f *Folder) read() (busy bool) {
	for range 10 {
		busy, moved := f.look()
		if !moved {
			return busy
		}
	}
	return true
}

// look does it once. moved: a file went meanwhile; as it may have another name now,
// none counts as gone.
func (f *Folder) look() (busy, moved bool) {
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if f.failed != err.Error() {
			f.failed = err.Error()
			f.cfg.Logger.Error("the folder of manifests can't be read; its pods stay as they are", "err", err)
		}
		return false, false
	}
	f.failed = ""
	there := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		path := filepath.Join(f.cfg.Dir, name)
		link := e.Type()&fs.ModeSymlink != 0
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !link:
			moved = true
			continue
		case err == nil && info.IsDir():
			continue
		}
		there[name] = true
		m := f.files[name]
		if m == nil {
			m = &manifest{}
			f.files[name] = m
		}
		if err != nil {
			f.bad(name, m, fileID{}, err)
			continue
		}
		if m.id == identify(info) {
			continue
		}
		b, id, err := readWhole(path)
		if errors.Is(err, errBusy) {
			busy = true
			continue
		}
		if errors.Is(err, fs.ErrNotExist) && !link {
			moved = true
			continue
		}
		var p *v1.Pod
		if err == nil {
			p, err = Parse(b, f.cfg.Node, f.cfg.Prepare)
		}
		if err != nil {
			f.bad(name, m, id, err)
			continue
		}
		*m = manifest{id: id, pod: p}
	}
	for name := range f.files {
		if !there[name] && !moved {
			delete(f.files, name)
		}
	}
	return busy, moved
}

// bad notes that a manifest can't be used; what it said before goes on.
func (f *Folder) bad(name string, m *manifest, id fileID, err error) {
	if m.err != nil && m.err.Error() == err.Error() && m.id == id {
		return
	}
	m.id, m.err = id, err
	if m.pod != nil {
		err = fmt.Errorf("%w; the pod %s/%s goes on as it was", err, m.pod.Namespace, m.pod.Name)
	}
	f.report(name, err)
}

func (f *Folder) report(name string, err error) {
	path := filepath.Join(f.cfg.Dir, name)
	f.cfg.Logger.Error("a manifest is not used", "file", path, "err", err)
	if f.cfg.Report != nil {
		f.cfg.Report(path, err)
	}
}
