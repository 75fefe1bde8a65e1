// Package volume makes the volumes of pods on this node: emptyDir (disk and
// memory), configMap, secret, downwardAPI, projected, hostPath, and claims that
// are bound to hostPath and local PersistentVolumes. Images as volumes are
// mounted by package pod, which pulls them.
//
// Contents that come from the API are written whole into a new directory and
// then appear at once, by the swap of one symbolic link (..data), so that a
// container never sees half an update. Secrets and tokens lie below MemRoot,
// a tmpfs, and never on disk.
//
// Limits: no CSI, no network file systems, no block volumes; Refused names what
// a pod asks for in vain.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/unmount"
)

// Objects gives the ConfigMaps and Secrets that volumes show.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// Config configures a Manager.
type Config struct {
	Root    string // on disk: Root/<uid>/volumes/<name>
	MemRoot string // on a tmpfs: MemRoot/<uid>/<name>
	Objects Objects
	Tokens  TokenSource
	// Claims, Volumes and Node serve claims; Local is where the volumes lie that
	// are provisioned on this node. Without them a pod with a claim waits.
	Claims  Claims
	Volumes Volumes
	Node    func() *v1.Node
	Local   *Local
	// MemoryAllocatable to pods; a memory emptyDir without a limit may be so large.
	MemoryAllocatable int64
	Recorder          record.EventRecorder // may be nil
	Logger            *slog.Logger
}

// Manager makes and removes the volumes of pods. Safe for concurrent use by
// different pods.
type Manager struct {
	cfg Config

	mu     sync.Mutex
	tokens map[string]*token // by file

	// claims makes "nobody has it, so it is deleted" one step, and "this pod has
	// it" another.
	claims sync.Mutex
}

// New returns a Manager.
func New(cfg Config) *Manager { return &Manager{cfg: cfg, tokens: map[string]*token{}} }

// Error is a volume that can't be made now.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

// Pod are the volumes of one pod.
type Pod struct {
	m    *Manager
	uid  string
	vols map[string]Mounted // by name
	// RefreshAt is when a token wants to be renewed; zero when none does.
	RefreshAt time.Time
}

// Mounted is one volume, ready to be mounted into containers.
type Mounted struct {
	Path          string // on the host
	ReadOnly      bool   // for all containers
	CreateMissing bool   // a directory is made at Path before it is mounted
	Options       []string
	Claim         string // name of the PersistentVolumeClaim behind it, or ""

	group *int64
	kind  kind
}

// Get returns a volume by its name in the pod.
func (p *Pod) Get(name string) (Mounted, bool) {
	v, ok := p.vols[name]
	return v, ok
}

// Groups are those that volumes give to the pod's processes.
func (p *Pod) Groups() (out []int64) {
	for _, v := range p.vols {
		if v.group != nil && !slices.Contains(out, *v.group) {
			out = append(out, *v.group)
		}
	}
	slices.Sort(out)
	return out
}

// Path returns where a volume lies on the host.
func (p *Pod) Path(name string) (string, bool) {
	v, ok := p.vols[name]
	return v.Path, ok
}

// Refused returns an error that names each field that asks for a volume which
// this package does not make.
func Refused(pod *v1.Pod) field.ErrorList {
	var errs field.ErrorList
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path := field.NewPath("spec", "volumes").Index(i)
		s := v.VolumeSource
		switch {
		case s.EmptyDir != nil:
			if m := s.EmptyDir.Medium; m != v1.StorageMediumDefault && m != v1.StorageMediumMemory {
				errs = append(errs, field.Forbidden(path.Child("emptyDir", "medium"), fmt.Sprintf("%q is not supported", m)))
			}
		case s.Projected != nil:
			for j, src := range s.Projected.Sources {
				sp := path.Child("projected", "sources").Index(j)
				if src.ClusterTrustBundle != nil {
					errs = append(errs, field.Forbidden(sp.Child("clusterTrustBundle"), "is not supported"))
				}
				if src.PodCertificate != nil {
					errs = append(errs, field.Forbidden(sp.Child("podCertificate"), "is not supported"))
				}
			}
		case s.ConfigMap != nil, s.Secret != nil, s.DownwardAPI != nil, s.HostPath != nil,
			s.PersistentVolumeClaim != nil, s.Ephemeral != nil, s.Image != nil:
		default:
			errs = append(errs, field.Forbidden(path, "this kind of volume is not supported"))
		}
	}
	return errs
}

// Setup makes all volumes of a pod, or brings them up to date when they are
// there already (contents that changed in the API, tokens that grow old). On
// an error that is an *Error the other volumes are nevertheless done.
func (m *Manager) Setup(ctx context.Context, pod *v1.Pod, fields Fields) (*Pod, error) {
	p := &Pod{m: m, uid: string(pod.UID), vols: map[string]Mounted{}}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Image != nil {
			continue // mounted when a container starts that has it
		}
		mounted, err := m.setup(ctx, p, pod, v, fields)
		if err != nil {
			errs = append(errs, &Error{v.Name, err})
			continue
		}
		p.vols[v.Name] = mounted
	}
	return p, errors.Join(errs...)
}

func (m *Manager) setup(ctx context.Context, p *Pod, pod *v1.Pod, v *v1.Volume, fields Fields) (Mounted, error) {
	at := m.place(p.uid, v)
	group := fsGroup(pod)
	c := collector{m: m, ctx: ctx, pod: pod, fields: fields, files: map[string]file{}, volume: v.Name, group: group}
	var err error
	switch s := v.VolumeSource; {
	case s.EmptyDir != nil:
		return at, m.emptyDir(at.Path, s.EmptyDir, pod, group)
	case s.HostPath != nil:
		return at, checkHostPath(s.HostPath)
	case s.PersistentVolumeClaim != nil, s.Ephemeral != nil:
		return m.claim(ctx, pod, v)
	case s.ConfigMap != nil:
		c.mode = mode(s.ConfigMap.DefaultMode)
		err = c.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.Secret != nil:
		c.mode = mode(s.Secret.DefaultMode)
		err = c.secret(s.Secret.SecretName, s.Secret.Items, s.Secret.Optional)
	case s.DownwardAPI != nil:
		c.mode = mode(s.DownwardAPI.DefaultMode)
		err = c.downward(s.DownwardAPI.Items)
	case s.Projected != nil:
		c.mode = mode(s.Projected.DefaultMode)
		if err = c.projected(s.Projected.Sources); err == nil && !c.refresh.IsZero() && (p.RefreshAt.IsZero() || c.refresh.Before(p.RefreshAt)) {
			p.RefreshAt = c.refresh
		}
	default:
		return at, errors.New("this kind of volume is not supported")
	}
	if err != nil {
		return at, err
	}
	return at, writePayload(at.Path, c.files, group)
}

// place is where a volume lies that is no claim: on disk, or in memory when it
// shows secrets or what may be one.
func (m *Manager) place(uid string, v *v1.Volume) Mounted {
	switch {
	case v.HostPath != nil:
		return Mounted{Path: v.HostPath.Path, CreateMissing: true, kind: kindHost}
	case v.EmptyDir != nil && v.EmptyDir.Medium != v1.StorageMediumDefault:
		return Mounted{Path: filepath.Join(m.cfg.Root, uid, "volumes", v.Name), kind: kindFS}
	case v.EmptyDir != nil:
		return Mounted{Path: filepath.Join(m.cfg.Root, uid, "volumes", v.Name), kind: kindDisk}
	case v.ConfigMap != nil:
		return Mounted{Path: filepath.Join(m.cfg.Root, uid, "volumes", v.Name), ReadOnly: true, kind: kindDisk}
	}
	return Mounted{Path: filepath.Join(m.cfg.MemRoot, uid, v.Name), ReadOnly: true}
}

// Teardown removes all that Setup made for a pod. Host paths stay.
func (m *Manager) Teardown(uid string) error {
	m.mu.Lock()
	for k, t := range m.tokens {
		if t.uid == uid {
			delete(m.tokens, k)
		}
	}
	m.mu.Unlock()
	disk, mem := filepath.Join(m.cfg.Root, uid, "volumes"), filepath.Join(m.cfg.MemRoot, uid)
	if err := errors.Join(unmount.Below(disk), unmount.Below(mem)); err != nil {
		return fmt.Errorf("unmounting the volumes of pod %s: %w", uid, err)
	}
	// The records of its claims go last: until then nobody deletes their volumes.
	return errors.Join(os.RemoveAll(disk), os.RemoveAll(mem), os.RemoveAll(filepath.Join(m.cfg.Root, uid, "claims")))
}

// Pods returns the UIDs of pods that have volumes in memory or on disk.
func (m *Manager) Pods() []string {
	seen := map[string]bool{}
	var out []string
	for _, root := range []string{m.cfg.Root, m.cfg.MemRoot} {
		entries, err := os.ReadDir(root)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				out = append(out, e.Name())
			}
		}
	}
	return out
}

func mode(m *int32) os.FileMode {
	if m == nil {
		return 0o644
	}
	return os.FileMode(*m) & 0o777
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func optionalMissing(err error, optional *bool) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Adopt returns the volumes that an earlier agent set up, as they are.
func (m *Manager) Adopt(pod *v1.Pod) *Pod {
	p := &Pod{m: m, uid: string(pod.UID), vols: map[string]Mounted{}}
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.Image != nil:
		case ClaimName(pod, v) != "":
			if c, err := m.record(p.uid, v.Name); err == nil && c != nil {
				p.vols[v.Name] = c.mounted()
			}
		default:
			p.vols[v.Name] = m.place(p.uid, v)
		}
	}
	return p
}
