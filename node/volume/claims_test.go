package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
)

// storage is an API with claims and volumes; gone makes it not answer.
type storage struct {
	claims  map[string]*v1.PersistentVolumeClaim
	volumes map[string]*v1.PersistentVolume
	gone    bool
}

func (s *storage) Claim(_ context.Context, ns, name string) (*v1.PersistentVolumeClaim, error) {
	if c := s.claims[name]; c != nil && !s.gone {
		return c, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolumeclaim"}, name)
}

func (s *storage) Volume(_ context.Context, name string) (*v1.PersistentVolume, error) {
	if v := s.volumes[name]; v != nil && !s.gone {
		return v, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolume"}, name)
}

// world is a node with one bound claim "data" of a local-path volume.
type world struct {
	*Manager
	api    *storage
	root   string
	events *record.FakeRecorder
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root := filepath.Join(t.TempDir(), "storage")
	local, err := NewLocal(root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(local.Wait)
	w := &world{root: root, events: record.NewFakeRecorder(10), api: &storage{
		claims: map[string]*v1.PersistentVolumeClaim{"data": {ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "ns", UID: "c1"},
			Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv-1"}, Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound}}},
		volumes: map[string]*v1.PersistentVolume{"pv-1": {
			ObjectMeta: metav1.ObjectMeta{Name: "pv-1", Annotations: map[string]string{annotationProvisioner: provisionerName}},
			Spec: v1.PersistentVolumeSpec{
				ClaimRef:               &v1.ObjectReference{Namespace: "ns", Name: "data", UID: "c1"},
				PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: filepath.Join(root, "pv-1")}},
				NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
					MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{"here"}}}}}}},
			}}},
	}}
	w.Manager = New(Config{Root: filepath.Join(t.TempDir(), "disk[1]*"), MemRoot: filepath.Join(t.TempDir(), "mem"), Objects: objects{}, Claims: w.api, Volumes: w.api, Local: local,
		Node: func() *v1.Node {
			return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{v1.LabelHostname: "here"}}}
		},
		Recorder: w.events, Logger: slog.New(slog.DiscardHandler)})
	return w
}

func claiming(uid, claim string) *v1.Pod {
	p := podWith(v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	p.UID = types.UID(uid)
	return p
}

func TestLocalPathVolumeFromFirstMountToDeletion(t *testing.T) {
	w := newWorld(t)
	vols, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{})
	if err != nil {
		t.Fatal(err)
	}
	v, _ := vols.Get("v")
	if info, err := os.Stat(v.Path); err != nil || info.Mode().Perm() != 0o777 || v.Path != filepath.Join(w.root, "pv-1") || v.ReadOnly || v.Claim != "data" {
		t.Fatalf("%+v: %v, %v", v, info, err)
	}
	if err := os.WriteFile(v.Path+"/keep", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteLocal("pv-1"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "ns/p") {
		t.Fatalf("deleting a volume that is in use: %v", err)
	}
	// A node that starts without any server knows what the pod has.
	w.api.gone = true
	if again, ok := w.Adopt(claiming("uid-1", "data")).Get("v"); !ok || again.Path != v.Path {
		t.Fatalf("adopted: %+v", again)
	}
	if _, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{}); err != nil {
		t.Fatalf("without a server: %v", err)
	}
	if err := w.DeleteLocal("pv-1"); !errors.Is(err, ErrInUse) {
		t.Fatalf("after a restart: %v", err)
	}
	if err := w.Teardown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if read(t, v.Path+"/keep") != "x" {
		t.Fatal("the end of the pod took its data away")
	}
	for range 2 { // it may be repeated
		if err := w.DeleteLocal("pv-1"); err != nil {
			t.Fatal(err)
		}
	}
	w.cfg.Local.Wait()
	if left, err := os.ReadDir(w.root); err != nil || len(left) != 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
}

// A volume whose directory could not be made, for want of space or because the
// node was killed, is made when the pod tries again.
func TestDirectoryThatCouldNotBeMade(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(os.Remove(w.root), os.WriteFile(w.root, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{}); err == nil {
		t.Fatal("set up without a directory")
	}
	if err := errors.Join(os.Remove(w.root), os.Mkdir(w.root, 0o711)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{}); err != nil {
		t.Fatal(err)
	}
}

func TestDeletionGoesOnAfterARestart(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(root+"/.deleted-1/pv-1/sub", 0o700), os.MkdirAll(root+"/pv-2", 0o700)); err != nil {
		t.Fatal(err)
	}
	l, err := NewLocal(root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.Wait()
	if left, _ := os.ReadDir(root); len(left) != 1 || left[0].Name() != "pv-2" {
		t.Fatalf("left: %v", left)
	}
	for _, bad := range []string{"", "relative", "/"} {
		if _, err := NewLocal(bad, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%q is accepted as the folder", bad)
		}
	}
}

func TestDeleteLocalRefusesOtherNames(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"..", ".", "a/b", "", ".deleted-1", "UP"} {
		if err := w.DeleteLocal(name); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestClaimsThatWait(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*storage, *v1.Pod)
		want   string
	}{
		"missing":    {func(s *storage, _ *v1.Pod) { delete(s.claims, "data") }, `persistentvolumeclaim "data" not found`},
		"unbound":    {func(s *storage, _ *v1.Pod) { s.claims["data"].Status.Phase = v1.ClaimPending }, `persistentvolumeclaim "ns/data" is not bound`},
		"lost":       {func(s *storage, _ *v1.Pod) { s.claims["data"].Status.Phase = v1.ClaimLost }, `has lost its volume "pv-1"`},
		"deleted":    {func(s *storage, _ *v1.Pod) { s.claims["data"].DeletionTimestamp = ptr.To(metav1.Now()) }, "is being deleted"},
		"no volume":  {func(s *storage, _ *v1.Pod) { delete(s.volumes, "pv-1") }, `persistentvolume "pv-1" not found`},
		"of another": {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.ClaimRef.UID = "c0" }, `"pv-1", which is not bound to it`},
		"elsewhere": {func(s *storage, _ *v1.Pod) {
			s.volumes["pv-1"].Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = "there"
		}, `"pv-1" cannot be used on node here: node affinity`},
		"block": {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock) }, `spec.volumeMode: "Block" is not supported`},
		"nfs": {func(s *storage, _ *v1.Pod) {
			s.volumes["pv-1"].Spec.PersistentVolumeSource = v1.PersistentVolumeSource{NFS: &v1.NFSVolumeSource{}}
		}, `PersistentVolume "pv-1": spec.nfs: this kind of volume is not supported`},
		"options":            {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.MountOptions = []string{"data=journal"} }, `spec.mountOptions: "data=journal" is not supported`},
		"path":               {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.Local.Path = "/a/../b" }, `spec.local.path: "/a/../b" is not an absolute path`},
		"not provisioned":    {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Annotations = nil }, `of PersistentVolume "pv-1" does not exist on this node`},
		"below another root": {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.Local.Path += "/sub" }, `does not exist on this node`},
		"a file":             {func(s *storage, _ *v1.Pod) { s.volumes["pv-1"].Spec.Local.Path = "/etc/passwd" }, `is no directory`},
		"hostPath of another type": {func(s *storage, _ *v1.Pod) {
			s.volumes["pv-1"].Spec.PersistentVolumeSource = v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/etc/passwd", Type: ptr.To(v1.HostPathDirectory)}}
		}, `hostPath type check failed: /etc/passwd is not a directory`},
		"ephemeral, of another pod": {func(s *storage, p *v1.Pod) {
			p.Spec.Volumes[0].VolumeSource = v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}
			s.claims["p-v"] = s.claims["data"]
		}, "was not created for pod"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := claiming("uid-1", "data")
			tc.change(w.api, p)
			_, err := w.Setup(t.Context(), p, Fields{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), `MountVolume.SetUp failed for volume "v"`) {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestReadOnlyClaimsAndOptions(t *testing.T) {
	w := newWorld(t)
	w.api.volumes["pv-1"].Spec.MountOptions = []string{"noexec", "ro"}
	vols, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{})
	if v, _ := vols.Get("v"); err != nil || !v.ReadOnly || len(v.Options) != 1 || v.Options[0] != "noexec" {
		t.Fatalf("%+v, %v", v, err)
	}
	w = newWorld(t)
	p := claiming("uid-1", "data")
	p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	vols, err = w.Setup(t.Context(), p, Fields{})
	if v, _ := vols.Get("v"); err != nil || !v.ReadOnly {
		t.Fatalf("%+v, %v", v, err)
	}
}

func TestReadWriteOncePod(t *testing.T) {
	w := newWorld(t)
	w.api.volumes["pv-1"].Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
	for range 2 {
		if _, err := w.Setup(t.Context(), claiming("uid-1", "data"), Fields{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Setup(t.Context(), claiming("uid-2", "data"), Fields{}); err == nil || !strings.Contains(err.Error(), "already in use by another pod") {
		t.Fatalf("a second pod: %v", err)
	}
	if err := w.Teardown("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Setup(t.Context(), claiming("uid-2", "data"), Fields{}); err != nil {
		t.Fatal(err)
	}
}

func TestOwnershipOfClaims(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change owners")
	}
	w := newWorld(t)
	outside := filepath.Join(t.TempDir(), "outside")
	dir := filepath.Join(w.root, "pv-1")
	if err := errors.Join(os.WriteFile(outside, nil, 0o600), os.MkdirAll(dir+"/sub", 0o700), os.WriteFile(dir+"/sub/f", nil, 0o4700), os.Chmod(dir+"/sub/f", 0o700|os.ModeSetuid),
		os.Symlink(outside, dir+"/link")); err != nil {
		t.Fatal(err)
	}
	p := claiming("uid-1", "data")
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To[int64](4242)}
	if _, err := w.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	check := func(path string, gid uint32, mode os.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if groupOf(info) != gid || mode != 0 && info.Mode() != mode {
			t.Errorf("%s: group %d mode %v", path, groupOf(info), info.Mode())
		}
	}
	check(dir, 4242, os.ModeDir|os.ModeSetgid|0o770)
	check(dir+"/sub", 4242, os.ModeDir|os.ModeSetgid|0o770)
	check(dir+"/sub/f", 4242, os.ModeSetuid|0o760)
	check(dir+"/link", 4242, 0)
	check(outside, 0, 0o600)

	// What the pod changes later stays, and so it does under a second pod.
	if err := os.Chmod(dir+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	other := claiming("uid-2", "data")
	other.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To[int64](777)}
	for _, p := range []*v1.Pod{p, other} {
		if _, err := w.Setup(t.Context(), p, Fields{}); err != nil {
			t.Fatal(err)
		}
	}
	check(dir+"/sub", 4242, os.ModeDir|0o700)
	select {
	case e := <-w.events.Events:
		if !strings.Contains(e, "AlreadyMountedVolume") || !strings.Contains(e, "fsGroup is 777") {
			t.Errorf("event %q", e)
		}
	default:
		t.Error("nobody was told that the group is another one")
	}

	// A pod that comes when nobody has it finds its root right, and asks for no more.
	if err := errors.Join(w.Teardown("uid-1"), w.Teardown("uid-2")); err != nil {
		t.Fatal(err)
	}
	p = claiming("uid-3", "data")
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To[int64](4242), FSGroupChangePolicy: ptr.To(v1.FSGroupChangeOnRootMismatch)}
	if _, err := w.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	check(dir+"/sub", 4242, os.ModeDir|0o700)
	if err := w.Teardown("uid-3"); err != nil {
		t.Fatal(err)
	}
	p.UID, p.Spec.SecurityContext.FSGroup = "uid-4", ptr.To[int64](4243)
	if _, err := w.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	check(dir+"/sub", 4243, os.ModeDir|os.ModeSetgid|0o770)
}

func TestGroupOfAVolume(t *testing.T) {
	w := newWorld(t)
	w.api.volumes["pv-1"].Annotations[annotationGroup] = "1234"
	p := claiming("uid-1", "data")
	vols, err := w.Setup(t.Context(), p, Fields{})
	if err != nil || len(vols.Groups()) != 1 || vols.Groups()[0] != 1234 {
		t.Fatalf("groups %v, %v", vols.Groups(), err)
	}
	if got := w.Adopt(p).Groups(); len(got) != 1 {
		t.Errorf("adopted: %v", got)
	}
	w = newWorld(t)
	w.api.volumes["pv-1"].Annotations[annotationGroup] = "staff"
	if _, err := w.Setup(t.Context(), p, Fields{}); err == nil || !strings.Contains(err.Error(), `metadata.annotations[pv.beta.kubernetes.io/gid]: "staff" is no group ID`) {
		t.Errorf("%v", err)
	}
}

func TestHostPathVolumeBehindAClaim(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "not", "there", "yet")
	w.api.volumes["pv-1"].Spec.PersistentVolumeSource = v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}
	p := claiming("uid-1", "data")
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To[int64](4242)} // hostPaths keep their owners
	vols, err := w.Setup(t.Context(), p, Fields{})
	if v, _ := vols.Get("v"); err != nil || v.Path != path || !v.CreateMissing || v.ReadOnly {
		t.Fatalf("%+v, %v", v, err)
	}
	w.api.volumes["pv-1"].Spec.HostPath.Type = ptr.To(v1.HostPathDirectoryOrCreate)
	p.UID = "uid-2"
	if _, err := w.Setup(t.Context(), p, Fields{}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() || groupOf(info) == 4242 {
		t.Fatalf("%v, %v", info, err)
	}
}
