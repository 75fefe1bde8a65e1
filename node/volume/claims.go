package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// Claims gives the PersistentVolumeClaims that pods name, which are watched
// while a pod of this node has them.
type Claims interface {
	Claim(ctx context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error)
}

// Volumes gives PersistentVolumes.
type Volumes interface {
	Volume(ctx context.Context, name string) (*v1.PersistentVolume, error)
}

// APIVolumes asks the API server.
type APIVolumes struct{ Client kubernetes.Interface }

// Volume implements Volumes.
func (a APIVolumes) Volume(ctx context.Context, name string) (*v1.PersistentVolume, error) {
	return a.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
}

// claimed is what a pod's claim led to. It is written down before the volume is
// used and stays until the pod's volumes are torn down, so that a node whose
// servers do not answer can start the pod's containers again, and that nobody
// deletes a volume under a pod.
type claimed struct {
	Pod      string   `json:"pod"` // namespace/name
	Claim    string   `json:"claim"`
	Volume   string   `json:"volume"` // name of the PersistentVolume
	Path     string   `json:"path"`
	HostPath bool     `json:"hostPath,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	Once     bool     `json:"once,omitempty"` // ReadWriteOncePod
	Options  []string `json:"options,omitempty"`
	Group    *int64   `json:"group,omitempty"` // of the volume's annotation: the pod's processes get it
	Owned    bool     `json:"owned,omitempty"` // fsGroup has been applied
	uid      string
}

func (m *Manager) recordPath(uid, volume string) string {
	return filepath.Join(m.cfg.Root, uid, "claims", volume+".json")
}

func (m *Manager) record(uid, volume string) (*claimed, error) {
	b, err := os.ReadFile(m.recordPath(uid, volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &claimed{uid: uid}
	if err := json.Unmarshal(b, c); err != nil || c.Path == "" {
		return nil, nil // half written: it is made again
	}
	return c, nil
}

func (m *Manager) keep(volume string, c *claimed) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	path := m.recordPath(c.uid, volume)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// users are the claims of this node's pods that led to a volume.
func (m *Manager) users(pv string) (out []*claimed, err error) {
	pods, err := readDir(m.cfg.Root)
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		records, err := readDir(filepath.Join(m.cfg.Root, pod.Name(), "claims"))
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			volume, ok := strings.CutSuffix(r.Name(), ".json")
			if !ok {
				continue
			}
			c, err := m.record(pod.Name(), volume)
			if err != nil {
				return nil, err
			}
			if c != nil && c.Volume == pv {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// readDir is os.ReadDir; what is no directory is empty.
func readDir(dir string) ([]fs.DirEntry, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return list, err
}

// ClaimName is the claim behind a pod's volume, "" when there is none.
func ClaimName(pod *v1.Pod, v *v1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	}
	return ""
}

// claim finds the volume behind a claim and makes it ready for the pod.
func (m *Manager) claim(ctx context.Context, pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	uid, name := string(pod.UID), ClaimName(pod, v)
	c, err := m.record(uid, v.Name)
	if err != nil {
		return Mounted{}, err
	}
	if c == nil || c.Claim != name {
		if c, err = m.resolve(ctx, pod, v, name); err != nil {
			return Mounted{}, err
		}
	}
	if info, err := os.Stat(c.Path); errors.Is(err, fs.ErrNotExist) && !c.HostPath {
		return Mounted{}, fmt.Errorf("the directory %s of PersistentVolume %q does not exist on this node", c.Path, c.Volume)
	} else if err == nil && !c.HostPath && !info.IsDir() {
		return Mounted{}, fmt.Errorf("%s of PersistentVolume %q is no directory: local volumes that are block devices are not supported", c.Path, c.Volume)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Mounted{}, err
	}
	if !c.Owned && !c.HostPath && !c.ReadOnly {
		if group := fsGroup(pod); group != nil {
			if err := m.shareWith(ctx, pod, c, *group); err != nil {
				return Mounted{}, err
			}
		}
		c.Owned = true
		if err := m.keep(v.Name, c); err != nil {
			return Mounted{}, err
		}
	}
	return c.mounted(), nil
}

func (c *claimed) mounted() Mounted {
	m := Mounted{Path: c.Path, ReadOnly: c.ReadOnly, CreateMissing: c.HostPath, Options: c.Options, Claim: c.Claim, group: c.Group, kind: kindFS}
	if c.HostPath {
		m.kind = kindHost
	}
	return m
}

// shareWith gives a volume to the pod's group, unless another pod has it by now:
// under that one nothing is changed.
func (m *Manager) shareWith(ctx context.Context, pod *v1.Pod, c *claimed, group int64) error {
	users, err := m.users(c.Volume)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(users, func(o *claimed) bool { return o.uid != c.uid && o.Owned }) {
		have, err := groupID(c.Path)
		if err == nil && have != group && m.cfg.Recorder != nil {
			m.cfg.Recorder.Eventf(pod, v1.EventTypeWarning, "AlreadyMountedVolume",
				"The requested fsGroup is %d, but the volume %s has GID %d. The volume may not be shareable.", group, c.Volume, have)
		}
		return err
	}
	var policy *v1.PodFSGroupChangePolicy
	if pod.Spec.SecurityContext != nil {
		policy = pod.Spec.SecurityContext.FSGroupChangePolicy
	}
	if err := setOwnership(ctx, c.Path, group, policy); err != nil {
		return fmt.Errorf("giving the volume to fsGroup %d: %w", group, err)
	}
	return nil
}

// resolve asks the API what is behind a claim, and writes it down.
func (m *Manager) resolve(ctx context.Context, pod *v1.Pod, v *v1.Volume, name string) (*claimed, error) {
	if m.cfg.Claims == nil || m.cfg.Volumes == nil {
		return nil, errors.New("this node knows no claims")
	}
	pvc, err := m.cfg.Claims.Claim(ctx, pod.Namespace, name)
	if err != nil {
		return nil, err
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, pvc); err != nil {
			return nil, err
		}
	}
	full := fmt.Sprintf("persistentvolumeclaim \"%s/%s\"", pod.Namespace, name)
	switch {
	case pvc.DeletionTimestamp != nil && !slices.Contains(pvc.Finalizers, "kubernetes.io/pvc-protection"):
		return nil, fmt.Errorf("%s is being deleted", full)
	case pvc.Status.Phase == v1.ClaimLost:
		return nil, fmt.Errorf("%s has lost its volume %q", full, pvc.Spec.VolumeName)
	case pvc.Status.Phase != v1.ClaimBound || pvc.Spec.VolumeName == "":
		return nil, fmt.Errorf("%s is not bound", full)
	}
	pv, err := m.cfg.Volumes.Volume(ctx, pvc.Spec.VolumeName)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", full, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.Namespace != pod.Namespace || ref.Name != name || ref.UID != pvc.UID {
		return nil, fmt.Errorf("%s names PersistentVolume %q, which is not bound to it", full, pv.Name)
	}
	c, err := m.usable(pv)
	if err != nil {
		return nil, err
	}
	c.uid, c.Pod, c.Claim = string(pod.UID), pod.Namespace+"/"+pod.Name, name
	c.ReadOnly = c.ReadOnly || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
	return c, m.take(v.Name, c, pv)
}

// take makes the directory of a volume that was provisioned here, and writes
// down that the pod has it.
func (m *Manager) take(volume string, c *claimed, pv *v1.PersistentVolume) error {
	m.claims.Lock()
	defer m.claims.Unlock()
	if c.Once {
		users, err := m.users(c.Volume)
		if err != nil {
			return err
		}
		for _, o := range users {
			if o.uid != c.uid {
				return fmt.Errorf("volume uses the ReadWriteOncePod access mode and is already in use by another pod (%s)", o.Pod)
			}
		}
	}
	// The directory comes first: one that a record names is never made again.
	if pv.Annotations[annotationProvisioner] == provisionerName && m.cfg.Local.owns(c.Path) {
		if err := m.cfg.Local.make(c.Path); err != nil {
			return err
		}
	}
	return m.keep(volume, c)
}

// usable says how this node mounts a PersistentVolume, or names the field for
// which it cannot.
func (m *Manager) usable(pv *v1.PersistentVolume) (*claimed, error) {
	refuse := func(field, why string) error {
		return fmt.Errorf("PersistentVolume %q: spec.%s: %s", pv.Name, field, why)
	}
	if mode := pv.Spec.VolumeMode; mode != nil && *mode != v1.PersistentVolumeFilesystem {
		return nil, refuse("volumeMode", fmt.Sprintf("%q is not supported", *mode))
	}
	if pv.Spec.NodeAffinity != nil {
		node := m.cfg.Node()
		if node == nil {
			return nil, errors.New("this node's own object is not known yet")
		}
		if err := storagehelpers.CheckNodeAffinity(pv, node.Labels); err != nil {
			return nil, fmt.Errorf("PersistentVolume %q cannot be used on node %s: node affinity: %w", pv.Name, node.Name, err)
		}
	}
	var group *int64
	if text, ok := pv.Annotations[annotationGroup]; ok {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("PersistentVolume %q: metadata.annotations[%s]: %q is no group ID", pv.Name, annotationGroup, text)
		}
		group = &n
	}
	c := &claimed{Volume: pv.Name, Group: group, Once: slices.Contains(pv.Spec.AccessModes, v1.ReadWriteOncePod)}
	switch {
	case pv.Spec.HostPath != nil:
		if len(pv.Spec.MountOptions) > 0 {
			return nil, refuse("mountOptions", "a hostPath volume takes none")
		}
		c.Path, c.HostPath = pv.Spec.HostPath.Path, true
		return c, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		if !filepath.IsAbs(pv.Spec.Local.Path) || slices.Contains(strings.Split(pv.Spec.Local.Path, "/"), "..") {
			return nil, refuse("local.path", fmt.Sprintf("%q is not an absolute path free of '..'", pv.Spec.Local.Path))
		}
		c.Path = pv.Spec.Local.Path
		for _, o := range pv.Spec.MountOptions {
			switch o {
			case "ro":
				c.ReadOnly = true
			case "rw":
			case "noexec", "nosuid", "nodev", "noatime", "nodiratime", "relatime":
				c.Options = append(c.Options, o)
			default:
				return nil, refuse("mountOptions", fmt.Sprintf("%q is not supported for a local volume", o))
			}
		}
		return c, nil
	}
	return nil, refuse(sourceName(pv), "this kind of volume is not supported")
}

// annotationGroup gives the processes of pods with a volume one more group.
const annotationGroup = "pv.beta.kubernetes.io/gid"

// sourceName is the field that says what a PersistentVolume is.
func sourceName(pv *v1.PersistentVolume) string {
	b, err := json.Marshal(pv.Spec.PersistentVolumeSource)
	set := map[string]json.RawMessage{}
	if err == nil && json.Unmarshal(b, &set) == nil {
		for name := range set {
			return name
		}
	}
	return "hostPath"
}
