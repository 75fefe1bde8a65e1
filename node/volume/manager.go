// Package volume makes the volumes of pods on this node: emptyDir (disk and
// memory), configMap, secret, downwardAPI, projected and hostPath.
//
// Contents that come from the API are written whole into a new directory and
// then appear at once, by the swap of one symbolic link (..data), so that a
// container never sees half an update. Secrets and tokens lie below MemRoot,
// a tmpfs, and never on disk.
//
// Limits: no CSI, no persistentVolumeClaim, no network file systems; Refused
// names what a pod asks for in vain.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
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
	// MemoryCapacity of the node; a memory emptyDir without a limit gets half.
	MemoryCapacity int64
	Logger         *slog.Logger
}

// Manager makes and removes the volumes of pods. Safe for concurrent use by
// different pods.
type Manager struct {
	cfg Config

	mu     sync.Mutex
	tokens map[string]*token // by file
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
	m     *Manager
	uid   string
	paths map[string]string // volume name -> path on the host
	// RefreshAt is when a token wants to be renewed; zero when none does.
	RefreshAt time.Time
}

// Path returns where a volume lies on the host.
func (p *Pod) Path(name string) (string, bool) {
	s, ok := p.paths[name]
	return s, ok
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
		case s.ConfigMap != nil, s.Secret != nil, s.DownwardAPI != nil, s.HostPath != nil:
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
	p := &Pod{m: m, uid: string(pod.UID), paths: map[string]string{}}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, err := m.setup(ctx, p, pod, v, fields)
		if err != nil {
			errs = append(errs, &Error{v.Name, err})
			continue
		}
		p.paths[v.Name] = path
	}
	return p, errors.Join(errs...)
}

func (m *Manager) setup(ctx context.Context, p *Pod, pod *v1.Pod, v *v1.Volume, fields Fields) (string, error) {
	disk := filepath.Join(m.cfg.Root, p.uid, "volumes", v.Name)
	mem := filepath.Join(m.cfg.MemRoot, p.uid, v.Name)
	group := fsGroup(pod)
	switch s := v.VolumeSource; {
	case s.EmptyDir != nil:
		return disk, m.emptyDir(disk, s.EmptyDir, pod, group)
	case s.HostPath != nil:
		return s.HostPath.Path, checkHostPath(s.HostPath)
	case s.ConfigMap != nil:
		c := collector{m: m, ctx: ctx, pod: pod, fields: fields, mode: mode(s.ConfigMap.DefaultMode), files: map[string]file{}}
		if err := c.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional); err != nil {
			return "", err
		}
		return disk, writePayload(disk, c.files, group)
	case s.Secret != nil:
		c := collector{m: m, ctx: ctx, pod: pod, fields: fields, mode: mode(s.Secret.DefaultMode), files: map[string]file{}}
		if err := c.secret(s.Secret.SecretName, s.Secret.Items, s.Secret.Optional); err != nil {
			return "", err
		}
		return mem, writePayload(mem, c.files, group)
	case s.DownwardAPI != nil:
		c := collector{m: m, ctx: ctx, pod: pod, fields: fields, mode: mode(s.DownwardAPI.DefaultMode), files: map[string]file{}}
		if err := c.downward(s.DownwardAPI.Items); err != nil {
			return "", err
		}
		return mem, writePayload(mem, c.files, group)
	case s.Projected != nil:
		c := collector{m: m, ctx: ctx, pod: pod, fields: fields, mode: mode(s.Projected.DefaultMode), files: map[string]file{}, volume: v.Name, group: group}
		if err := c.projected(s.Projected.Sources); err != nil {
			return "", err
		}
		if !c.refresh.IsZero() && (p.RefreshAt.IsZero() || c.refresh.Before(p.RefreshAt)) {
			p.RefreshAt = c.refresh
		}
		return mem, writePayload(mem, c.files, group)
	}
	return "", errors.New("this kind of volume is not supported")
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
	dir := filepath.Join(m.cfg.Root, uid, "volumes")
	if err := unmountBelow(dir); err != nil {
		return fmt.Errorf("unmounting the volumes of pod %s: %w", uid, err)
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(filepath.Join(m.cfg.MemRoot, uid)))
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
	p := &Pod{m: m, uid: string(pod.UID), paths: map[string]string{}}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.HostPath != nil:
			p.paths[v.Name] = v.HostPath.Path
		case v.EmptyDir != nil, v.ConfigMap != nil:
			p.paths[v.Name] = filepath.Join(m.cfg.Root, p.uid, "volumes", v.Name)
		default:
			p.paths[v.Name] = filepath.Join(m.cfg.MemRoot, p.uid, v.Name)
		}
	}
	return p
}
