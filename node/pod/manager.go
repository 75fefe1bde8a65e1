package pod

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/objects"
	"github.com/skiff-sh/skiff/node/volume"
)

// Held are objects that stay watched while a pod needs them.
type Held interface {
	Objects
	Hold(refs []objects.Ref, changed func()) (release func())
}

// Config configures a Manager.
type Config struct {
	NodeName string
	HostIPs  []string
	Client   kubernetes.Interface
	Runtime  Runtime
	Images   Images
	Network  Network
	Volumes  *volume.Manager
	Objects  Held
	// Services returns the cluster's services, waiting for the first list.
	Services func(ctx context.Context) ([]*v1.Service, error)
	// Node returns the Node object as last seen, nil when it is not known.
	Node     func() *v1.Node
	Recorder record.EventRecorder
	// Permit says whether a pod that must not run twice may run here, given for
	// how long it tolerates that the node cannot be reached. Nil: always.
	Permit func(tolerated time.Duration) Permit
	// Meter counts what happens; nil: nobody does.
	Meter *meter.Meter
	// FenceFile is where shims read the time of the last contact; see
	// shimproto.Fence. Needed with Permit.
	FenceFile string
	// KeepStatic is told of each new status of a pod from a manifest, so that it is
	// known after a restart; the status counts once it returns nil. StaticChanged
	// is called after that, and when such a pod has ended. See AddStatic.
	KeepStatic    func(p *v1.Pod) error
	StaticChanged func()
	// Closing says that the machine is being shut down: it takes no more pods.
	// Nil: never.
	Closing func() bool

	DataDir    string // DataDir/pods/<uid> holds a pod's files
	LogDir     string // LogDir/<namespace>_<name>_<uid>/<container>/<attempt>.log, of pods that begin now
	ResolvConf string // the host's
	DNS        DNS

	Allocatable    v1.ResourceList
	MemoryCapacity int64
	PidsPerPod     int64 // 0: no limit
	Sysctls        Sysctls
	SeccompDefault bool // containers that name no seccomp profile have RuntimeDefault
	// Pressure returns what the node is short of: it then takes no new pods. Nil: of
	// nothing.
	Pressure func() []v1.NodeConditionType

	Logger *slog.Logger
	now    func() time.Time // time.Now unless a test says otherwise
	save   func(a *allocation, dir string, safe bool) error
}

// Manager has one worker for each pod bound to this node.
type Manager struct {
	cfg    Config
	logs   logs.Place
	writes chan struct{} // bounds status writes under way
	pulls  *pulls
	grants *grants
	ctx    context.Context

	mu      sync.Mutex
	workers map[types.UID]*worker
	again   map[types.UID]*v1.Pod     // came back while their worker still ends them
	missing map[types.UID]*time.Timer // not in the last list, see Keep
	wg      sync.WaitGroup
	// adopted sandboxes wait here for their pod's worker.
	adopted map[string]Sandbox
	statics statics
}

// NewManager returns a Manager that runs nothing yet.
func NewManager(cfg Config) *Manager {
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.save == nil {
		cfg.save = (*allocation).write
	}
	m := &Manager{cfg: cfg, logs: logs.Place{Dir: cfg.LogDir, DataDir: cfg.DataDir}, writes: make(chan struct{}, 16), pulls: newPulls(cfg),
		workers: map[types.UID]*worker{}, again: map[types.UID]*v1.Pod{}, missing: map[types.UID]*time.Timer{}, adopted: map[string]Sandbox{}}
	m.grants = &grants{m: m, pods: map[types.UID]*grant{}}
	return m
}

// Start adopts what an earlier agent left running and then begins to run the
// given pods, which must be all that are bound to this node. Sandboxes of
// other pods are ended, and everything else that belongs to no pod removed.
// Workers run until ctx ends; Wait awaits them. Containers go on.
func (m *Manager) Start(ctx context.Context, pods []*v1.Pod) error {
	if m.ctx == nil { // else pods of manifests run already
		m.ctx = ctx
	}
	m.grants.load(pods)
	m.statics.still.Lock()
	err := m.adopt(ctx, pods)
	m.statics.still.Unlock()
	if err != nil {
		return err
	}
	for _, p := range pods {
		m.Update(p)
	}
	return nil
}

// Wait returns when all workers have ended, after Start's ctx has.
func (m *Manager) Wait() { m.wg.Wait() }

// Update tells of a pod that is new or changed. One that was gone can come back
// with its UID, when a snapshot is restored.
func (m *Manager) Update(p *v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.found(p.UID)
	w := m.workers[p.UID]
	if w == nil {
		m.run(p)
		return
	}
	if !w.update(p) {
		m.again[p.UID] = p
	}
}

// run begins a worker; m.mu is held.
func (m *Manager) run(p *v1.Pod) {
	w := newWorker(m, p)
	m.workers[p.UID] = w
	m.wg.Go(func() { w.run(m.ctx) })
}

// Remove tells that a pod is gone from the API.
func (m *Manager) Remove(uid types.UID) {
	m.mu.Lock()
	m.found(uid)
	w := m.workers[uid]
	delete(m.again, uid)
	m.mu.Unlock()
	if w != nil {
		m.grants.end(uid) // the scheduler does not count it any more either
		w.remove()
	}
}

// lateNews is how long pods run on that were not deleted but are missing: others
// have to list again, too, before they send them no more traffic. Shared informers
// wait for 0.8 to 1.6 s until they do.
const lateNews = 2 * time.Second

// Keep tells which pods there are after a relist; all others are gone. That is so
// for many at once when a snapshot was restored. Those of StatefulSets end at once,
// since another of their name may run.
func (m *Manager) Keep(uids map[types.UID]bool) {
	m.mu.Lock()
	var gone []types.UID
	for uid, w := range m.workers {
		switch {
		case w.static:
		case uids[uid]:
			m.found(uid)
		case w.single():
			gone = append(gone, uid)
		case m.missing[uid] == nil:
			var t *time.Timer
			t = time.AfterFunc(lateNews, func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				if m.missing[uid] == t {
					delete(m.missing, uid)
					w.remove()
				}
			})
			m.missing[uid] = t
			delete(m.again, uid)
		}
	}
	m.mu.Unlock()
	for _, uid := range gone {
		m.Remove(uid)
	}
}

// found forgets that a pod is missing; m.mu is held.
func (m *Manager) found(uid types.UID) {
	if t := m.missing[uid]; t != nil {
		t.Stop()
		delete(m.missing, uid)
	}
}

// Poke wakes all workers, as when services or the node changed.
func (m *Manager) Poke() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		w.poke()
	}
}

// poke wakes one worker.
func (m *Manager) poke(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[uid]; w != nil {
		w.poke()
	}
}

func (m *Manager) forget(w *worker) {
	m.grants.forget(w.uid)
	m.cfg.Meter.Gone(w.pod)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.workers[w.uid] != w {
		return
	}
	delete(m.workers, w.uid)
	if w.static {
		m.followStatic(w)
		return
	}
	if p := m.again[w.uid]; p != nil && m.ctx.Err() == nil {
		delete(m.again, w.uid)
		m.run(p)
	}
}

// Views returns what is known of all pods.
func (m *Manager) Views() []*View {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*View, 0, len(m.workers))
	for _, w := range m.workers {
		if v := w.view.Load(); v != nil {
			out = append(out, v)
		}
	}
	return out
}

// ErrNoPod is returned for a pod that this node does not have.
var ErrNoPod = errors.New("pod not found on this node")

// Find returns what is known of one pod; uid may be empty.
func (m *Manager) Find(namespace, name string, uid types.UID) (*View, error) {
	var found *View
	for _, v := range m.Views() {
		if v.Pod.Namespace != namespace || v.Pod.Name != name || (uid != "" && v.Pod.UID != uid) {
			continue
		}
		if found == nil || found.Pod.DeletionTimestamp != nil { // a successor of the same name wins
			found = v
		}
	}
	if found == nil {
		return nil, ErrNoPod
	}
	return found, nil
}

// View is an immutable picture of a pod, for those who serve requests.
type View struct {
	Pod        *v1.Pod // with the status as the worker last computed it
	Sandbox    Sandbox // nil when there is none
	Containers map[string]ContainerView
	Volumes    *volume.Pod // nil before they are set up
	State      State
	Static     bool // from a manifest of this node, not from the API
}

// ContainerView is one container of a View.
type ContainerView struct {
	ID         string // of the newest attempt; "" when there was none
	Running    bool
	TTY        bool
	Stdin      bool
	StdinOnce  bool
	LogPath    string // of the newest attempt
	PrevLog    string // of the attempt before it, "" when there was none
	StartedAt  time.Time
	FinishedAt time.Time
}

func (m *Manager) pressure() []v1.NodeConditionType {
	if m.cfg.Pressure == nil {
		return nil
	}
	return m.cfg.Pressure()
}

func (m *Manager) podDir(uid types.UID) string {
	return filepath.Join(m.cfg.DataDir, "pods", string(uid))
}

// logFolder is where the logs of a pod's containers are.
func (m *Manager) logFolder(p *v1.Pod) string {
	return m.logs.Folder(p.Namespace, p.Name, string(p.UID))
}

// logBase is the name of that folder.
func logBase(p *v1.Pod) string { return logs.Base(p.Namespace, p.Name, string(p.UID)) }
