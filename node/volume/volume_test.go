package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
)

type objects struct {
	cms     map[string]*v1.ConfigMap
	secrets map[string]*v1.Secret
}

func (o objects) ConfigMap(_ context.Context, ns, name string) (*v1.ConfigMap, error) {
	if cm := o.cms[name]; cm != nil {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmap"}, name)
}

func (o objects) Secret(_ context.Context, ns, name string) (*v1.Secret, error) {
	if s := o.secrets[name]; s != nil {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secret"}, name)
}

type tokens struct {
	n    int
	life time.Duration
	err  error
}

func (t *tokens) Token(_ context.Context, ns, sa string, req *authv1.TokenRequest) (*authv1.TokenRequest, error) {
	if t.err != nil {
		return nil, t.err
	}
	t.n++
	req.Status = authv1.TokenRequestStatus{Token: strings.Repeat("x", t.n) + req.Spec.BoundObjectRef.Name, ExpirationTimestamp: metav1.NewTime(time.Now().Add(t.life))}
	return req, nil
}

func newManager(t *testing.T, o objects, ts TokenSource) *Manager {
	return New(Config{Root: filepath.Join(t.TempDir(), "disk"), MemRoot: filepath.Join(t.TempDir(), "mem"), Objects: o, Tokens: ts,
		MemoryAllocatable: 64 << 20, Logger: slog.New(slog.DiscardHandler)})
}

func podWith(vols ...v1.Volume) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid-1", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec: v1.PodSpec{Volumes: vols, Containers: []v1.Container{{Name: "c"}}}}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfigMapVolumeFollowsChangesAtomically(t *testing.T) {
	o := objects{cms: map[string]*v1.ConfigMap{"cfg": {Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}}}}
	m := newManager(t, o, nil)
	p := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}, DefaultMode: ptr.To[int32](0o400)}}})
	vols, err := m.Setup(t.Context(), p, Fields{})
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := vols.Path("v")
	if got := read(t, dir+"/a") + read(t, dir+"/b") + read(t, dir+"/bin"); got != "12\x00\x01" {
		t.Fatalf("contents %q", got)
	}
	info, err := os.Stat(dir + "/a")
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Fatalf("mode %v %v", info.Mode(), err)
	}
	before, _ := os.Readlink(dir + "/..data")
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(dir + "/..data"); after != before {
		t.Fatal("unchanged contents were written again")
	}
	o.cms["cfg"] = &v1.ConfigMap{Data: map[string]string{"a": "changed", "new": "n"}}
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir+"/a") + read(t, dir+"/new"); got != "changedn" {
		t.Fatalf("contents %q", got)
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..2") && e.Name() != "..data" && !strings.HasPrefix(e.Name(), "..") {
			names = append(names, e.Name())
		}
	}
	if len(entries) != 4 || strings.Join(names, ",") != "a,new" { // two links, ..data, its directory
		t.Fatalf("left behind: %v", entries)
	}
	// A file too many in the old contents must be noticed too.
	o.cms["cfg"] = &v1.ConfigMap{Data: map[string]string{"a": "changed"}}
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/new"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a removed key is still there: %v", err)
	}
	if err := m.Teardown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the volume outlived its pod")
	}
}

func TestMissingSources(t *testing.T) {
	m := newManager(t, objects{cms: map[string]*v1.ConfigMap{"cfg": {Data: map[string]string{"a": "1"}}}}, nil)
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	for _, tc := range []struct {
		src  v1.VolumeSource
		want string // of the error; "" for none
	}{
		{v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("nope")}}, `MountVolume.SetUp failed for volume "v" : configmap "nope" not found`},
		{v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("nope"), Optional: ptr.To(true)}}, ""},
		{v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "nope"}}, `MountVolume.SetUp failed for volume "v" : secret "nope" not found`},
		{v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cfg"), Items: []v1.KeyToPath{{Key: "z", Path: "z"}}}}, `MountVolume.SetUp failed for volume "v" : references non-existent config key: z`},
		{v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cfg"), Items: []v1.KeyToPath{{Key: "a", Path: "../../evil"}}}}, `leads out of the volume`},
		{v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/nowhere/at/all", Type: ptr.To(v1.HostPathDirectory)}}, `hostPath type check failed: /nowhere/at/all is not a directory`},
	} {
		_, err := m.Setup(t.Context(), podWith(v1.Volume{Name: "v", VolumeSource: tc.src}), Fields{})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

func TestProjectedTokenIsRenewed(t *testing.T) {
	ts := &tokens{life: time.Hour}
	m := newManager(t, objects{cms: map[string]*v1.ConfigMap{"kube-root-ca.crt": {Data: map[string]string{"ca.crt": "CA"}}}}, ts)
	p := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](3600)}},
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "kube-root-ca.crt"}}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
			{Path: "meta/labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
	}}}})
	vols, err := m.Setup(t.Context(), p, Fields{})
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := vols.Path("v")
	if got := read(t, dir+"/token") + read(t, dir+"/ca.crt") + read(t, dir+"/namespace") + read(t, dir+"/meta/labels"); got != "xp"+"CA"+"ns"+"a=\"1\"\nb=\"2\"" {
		t.Fatalf("contents %q", got)
	}
	if in := time.Until(vols.RefreshAt); in < 47*time.Minute || in > 48*time.Minute {
		t.Fatalf("renewal in %v, want four fifths of an hour", in)
	}
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil || ts.n != 1 {
		t.Fatalf("asked for %d tokens: %v", ts.n, err)
	}
	for _, tk := range m.tokens { // let time pass
		tk.refresh = time.Now().Add(-time.Second)
	}
	ts.err = errors.New("no quorum")
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatalf("a valid token must do while the API is away: %v", err)
	}
	ts.err = nil
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir+"/token"); got != "xxp" {
		t.Fatalf("token %q was not renewed", got)
	}
}

func TestEmptyDirAndOwnership(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount and to change owners")
	}
	m := newManager(t, objects{cms: map[string]*v1.ConfigMap{"cfg": {Data: map[string]string{"a": "1"}}}}, nil)
	limit := resource.MustParse("1Mi")
	p := podWith(
		v1.Volume{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &limit}}},
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}},
		v1.Volume{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}, DefaultMode: ptr.To[int32](0o400)}}})
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To[int64](4242)}
	t.Cleanup(func() { _ = m.Teardown("uid-1") })
	vols, err := m.Setup(t.Context(), p, Fields{})
	if err != nil {
		t.Fatal(err)
	}
	mem, _ := vols.Path("mem")
	disk, _ := vols.Path("disk")
	cfg, _ := vols.Path("cfg")
	if err := os.WriteFile(mem+"/big", make([]byte, 2<<20), 0o600); err == nil {
		t.Error("a memory volume took more than its limit")
	}
	if err := os.WriteFile(disk+"/keep", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if read(t, disk+"/keep") != "x" {
		t.Error("setting up again emptied the volume")
	}
	for path, want := range map[string]os.FileMode{mem: 0o777, disk: 0o777, cfg + "/a": 0o440} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := groupOf(info); gid != 4242 || info.Mode().Perm() != want {
			t.Errorf("%s: group %d mode %v", path, gid, info.Mode())
		}
	}
	if err := m.Teardown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(b), mem) {
		t.Error("the tmpfs is still mounted")
	}
}

func TestSubpathStaysInside(t *testing.T) {
	root := t.TempDir()
	vol := filepath.Join(root, "vol")
	if err := errors.Join(os.MkdirAll(vol+"/dir", 0o755), os.WriteFile(root+"/secret", nil, 0o600), os.WriteFile(vol+"/dir/f", []byte("in"), 0o644),
		os.Symlink("../secret", vol+"/out"), os.Symlink("/etc", vol+"/abs"), os.Symlink("dir/f", vol+"/inside")); err != nil {
		t.Fatal(err)
	}
	for sub, ok := range map[string]bool{"dir": true, "inside": true, "made/on/demand": true, "out": false, "abs/passwd": false, "../secret": false} {
		f, err := Subpath(vol, sub)
		if (err == nil) != ok {
			t.Errorf("%s: %v", sub, err)
		}
		if err == nil {
			if _, err := os.Stat(Source(f)); err != nil {
				t.Errorf("%s is not reachable through the open file: %v", sub, err)
			}
			f.Close()
		}
	}
}

func TestRefused(t *testing.T) {
	p := podWith(v1.Volume{Name: "a", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{}}},
		v1.Volume{Name: "b", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{}}},
		v1.Volume{Name: "c", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumHugePages}}},
		v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	var fields []string
	for _, e := range Refused(p) {
		fields = append(fields, e.Field)
	}
	if got := strings.Join(fields, " "); got != "spec.volumes[0] spec.volumes[1] spec.volumes[2].emptyDir.medium" {
		t.Errorf("refused %s", got)
	}
}

func TestFields(t *testing.T) {
	f := Fields{NodeName: "n1", PodIPs: []string{"10.0.0.1", "fd00::1"}, Allocatable: v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")}}
	p := podWith()
	p.Annotations = map[string]string{"x/y": "z"}
	for path, want := range map[string]string{"metadata.name": "p", "metadata.labels['a']": "1", "metadata.annotations['x/y']": "z", "status.podIPs": "10.0.0.1,fd00::1", "spec.nodeName": "n1"} {
		if got, err := f.Field(p, path); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := f.Field(p, "spec.foo"); err == nil {
		t.Error("an unknown path was answered")
	}
	f.Allocatable["hugepages-2Mi"], f.Allocatable["ephemeral-storage"] = resource.MustParse("4Mi"), resource.MustParse("10Gi")
	p.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{"ephemeral-storage": resource.MustParse("3Gi")}}
	c := &v1.Container{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{"cpu": resource.MustParse("250m")}}}
	for _, tc := range []struct{ name, divisor, want string }{
		{"limits.hugepages-2Mi", "1", "0"}, {"limits.ephemeral-storage", "1Gi", "3"},
		{"requests.cpu", "0", "1"}, {"requests.cpu", "1m", "250"}, {"limits.cpu", "1", "2"}, {"limits.memory", "1Mi", "1024"}} {
		if got, err := f.Resource(p, c, tc.name, resource.MustParse(tc.divisor)); err != nil || got != tc.want {
			t.Errorf("%s/%s = %q, %v; want %q", tc.name, tc.divisor, got, err, tc.want)
		}
	}
}

func groupOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Gid }

// A pod's end deletes its volumes, and nothing that is mounted in them: not what a
// container has bound there, nor the mounts of the host that came with it. The
// folder of all pods may be a symbolic link.
func TestTeardownLeavesTheHostsMountsAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	for _, name := range []string{"folder", "symbolic link"} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, objects{}, nil)
			if name == "symbolic link" {
				link := filepath.Join(t.TempDir(), "link")
				if err := errors.Join(os.MkdirAll(m.cfg.Root, 0o700), os.Symlink(m.cfg.Root, link)); err != nil {
					t.Fatal(err)
				}
				m.cfg.Root = link
			}
			teardownWithMounts(t, m)
		})
	}
}

func teardownWithMounts(t *testing.T, m *Manager) {
	t.Helper()
	p := podWith(v1.Volume{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	vols, err := m.Setup(t.Context(), p, Fields{})
	if err != nil {
		t.Fatal(err)
	}
	mount := func(source, at, kind string, flags uintptr) {
		t.Helper()
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, at, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	host := t.TempDir()
	mount("tmpfs", host, "tmpfs", 0)
	mount("", host, "", unix.MS_SHARED)
	mount("tmpfs", host+"/inner", "tmpfs", 0)
	files := []string{host + "/outside", host + "/inner/inside"}
	for _, f := range files {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk, _ := vols.Path("disk")
	mount(host, disk+"/bound", "", unix.MS_BIND|unix.MS_REC)
	if err := m.Teardown("uid-1"); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("gone with the pod: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(m.cfg.Root, "uid-1", "volumes")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the volumes are still there: %v", err)
	}
}
