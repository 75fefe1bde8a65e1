package localpath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
	"github.com/skiff-sh/skiff/cluster/localpath"
)

// fakeNodes remembers what was deleted; err is what it answers.
type fakeNodes struct {
	mu      sync.Mutex
	err     error
	asked   int
	deleted []string
}

func (f *fakeNodes) DeleteVolume(_ context.Context, node, volume string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.err != nil {
		return f.err
	}
	f.deleted = append(f.deleted, node+"/"+volume)
	return nil
}

func (f *fakeNodes) answer(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeNodes) done() (string, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.deleted, " "), f.asked
}

func node(name string, isReady bool) *corev1.Node {
	status := corev1.ConditionTrue
	if !isReady {
		status = corev1.ConditionUnknown
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name + "-host"},
			Annotations: map[string]string{localpath.RootAnnotation: "/data/storage", localpath.CapacityAnnotation: "10737418240"}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}},
	}
}

func class(change ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local-path"}, Provisioner: localpath.Provisioner,
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete), VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)}
	for _, f := range change {
		f(c)
	}
	return c
}

func claim(selected string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "u1",
			Annotations: map[string]string{storagehelpers.AnnStorageProvisioner: localpath.Provisioner, storagehelpers.AnnSelectedNode: selected}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("local-path"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func run(t *testing.T, objs ...runtime.Object) (*controllertest.Cluster, *fakeNodes) {
	t.Helper()
	c, nodes := controllertest.New(t, objs...), &fakeNodes{}
	start(t, c, nodes)
	return c, nodes
}

func start(t *testing.T, c *controllertest.Cluster, nodes *fakeNodes) {
	t.Helper()
	ctl, err := New(Config{Config: c.Config, Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
}

func TestVolumeIsMadeOnTheChosenNode(t *testing.T) {
	c, _ := run(t, node("a", true), node("b", true), class(func(c *storagev1.StorageClass) { c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimRetain) }), claim("b"))
	controllertest.Eventually(t, func() string {
		v, err := c.Client.CoreV1().PersistentVolumes().Get(context.Background(), "pvc-u1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		s := v.Spec
		q := s.Capacity["storage"]
		host := s.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
		if s.Local == nil || s.Local.Path != "/data/storage/pvc-u1" || s.StorageClassName != "local-path" || s.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain ||
			q.String() != "1Gi" || s.ClaimRef.UID != "u1" || s.ClaimRef.Name != "data" || host.Key != corev1.LabelHostname || !slices.Equal(host.Values, []string{"b-host"}) ||
			v.Annotations[storagehelpers.AnnDynamicallyProvisioned] != localpath.Provisioner || v.Annotations[localpath.NodeAnnotation] != "b" || !slices.Equal(v.Finalizers, []string{localpath.Finalizer}) {
			t.Fatalf("volume %+v", v)
		}
		return ""
	})
	if e := <-c.Events.Events; e != "Normal ProvisioningSucceeded Successfully provisioned volume pvc-u1" {
		t.Errorf("event %q", e)
	}
	c.Settles(t, 50*time.Millisecond)
}

func TestWhatCannotBeMadeIsSaid(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for _, tc := range []struct {
		name       string
		class      *storagev1.StorageClass
		claim      *corev1.PersistentVolumeClaim
		want       string
		reschedule bool
	}{
		{"binding mode", class(func(c *storagev1.StorageClass) { c.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate) }), claim("a"), "must be WaitForFirstConsumer", false},
		{"parameters", class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"path": "/x"} }), claim("a"), "parameters of the class", false},
		{"mount options", class(func(c *storagev1.StorageClass) { c.MountOptions = []string{"ro"} }), claim("a"), "mountOptions of the class", false},
		{"block", class(), claim("a", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }), "spec.volumeMode must be Filesystem", false},
		{"many nodes", class(), claim("a", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteMany}
		}), "spec.accessModes", false},
		{"copy", class(), claim("a", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "x"}
		}), "spec.dataSource", false},
		{"node is gone", class(), claim("z"), `node "z" does not exist`, true},
		{"disk is too small", class(), claim("a", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests["storage"] = resource.MustParse("11Gi")
		}), "the disk has 10737418240 bytes, the claim asks for 11811160064", true},
		{"node offers none", class(), claim("none"), "offers no folder", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			none := node("none", true)
			none.Annotations = nil
			c, _ := run(t, node("a", true), none, tc.class, tc.claim)
			select {
			case e := <-c.Events.Events:
				if !strings.HasPrefix(e, `Warning ProvisioningFailed failed to provision volume with StorageClass "local-path": `) || !strings.Contains(e, tc.want) {
					t.Errorf("event %q, want %q", e, tc.want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no event")
			}
			controllertest.Eventually(t, func() string {
				got, err := c.Client.CoreV1().PersistentVolumeClaims("default").Get(context.Background(), "data", metav1.GetOptions{})
				if _, chosen := got.Annotations[storagehelpers.AnnSelectedNode]; err != nil || chosen == tc.reschedule {
					return fmt.Sprintf("%v, node chosen: %v", err, chosen)
				}
				return ""
			})
			c.Settles(t, 50*time.Millisecond)
		})
	}
}

func released(node string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-u1", UID: types.UID("pv"), Finalizers: []string{localpath.Finalizer},
			Annotations: map[string]string{storagehelpers.AnnDynamicallyProvisioned: localpath.Provisioner, localpath.NodeAnnotation: node}},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/data/storage/pvc-u1"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeReleased},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func TestReleasedVolumes(t *testing.T) {
	now := metav1.Now()
	deleted := func(v *corev1.PersistentVolume) { v.DeletionTimestamp = &now }
	kept := func(v *corev1.PersistentVolume) {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	inUse := func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound }
	for _, tc := range []struct {
		name    string
		volume  *corev1.PersistentVolume
		deleted string // node/volume
		gone    bool   // the object, or its last finalizer
		event   string
	}{
		{"deleted with its folder", released("a"), "a/pvc-u1", true, ""},
		{"kept", released("a", kept), "", false, ""},
		{"in use", released("a", inUse), "", false, ""},
		{"deleted by somebody", released("a", deleted), "a/pvc-u1", true, ""},
		{"deleted by somebody while in use", released("a", deleted, inUse), "", false, ""},
		{"deleted by somebody, data kept", released("a", deleted, kept), "", true, ""},
		{"known by its affinity", released("a", func(v *corev1.PersistentVolume) { delete(v.Annotations, localpath.NodeAnnotation) }), "a/pvc-u1", true, ""},
		{"node is gone", released("z"), "", true, `Warning VolumeDelete node "z" of the volume no longer exists: its folder /data/storage/pvc-u1 is left`},
		{"node has another folder by now", released("a", func(v *corev1.PersistentVolume) { v.Spec.Local.Path = "/before/pvc-u1" }), "a/pvc-u1", true,
			`Warning VolumeDelete node "a" has its volumes in /data/storage by now: the folder /before/pvc-u1 is left`},
		{"nobody knows the node", released("a", func(v *corev1.PersistentVolume) {
			delete(v.Annotations, localpath.NodeAnnotation)
			v.Spec.NodeAffinity = nil
		}), "", false, "Warning VolumeFailedDelete annotation skiff.sh/node is missing"},
		{"of another provisioner", released("a", func(v *corev1.PersistentVolume) {
			v.Annotations[storagehelpers.AnnDynamicallyProvisioned] = "example.com/disk"
		}), "", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, nodes := run(t, node("a", true), class(), tc.volume)
			check := func() string {
				v, err := c.Client.CoreV1().PersistentVolumes().Get(context.Background(), "pvc-u1", metav1.GetOptions{})
				gone := apierrors.IsNotFound(err) || err == nil && len(v.Finalizers) == 0
				if got, _ := nodes.done(); got != tc.deleted || gone != tc.gone {
					return fmt.Sprintf("deleted %q, gone %v", got, gone)
				}
				return ""
			}
			controllertest.Eventually(t, check)
			if tc.event != "" {
				if e := <-c.Events.Events; !strings.HasPrefix(e, tc.event) {
					t.Errorf("event %q, want %q", e, tc.event)
				}
			}
			time.Sleep(50 * time.Millisecond)
			if why := check(); why != "" {
				t.Error(why)
			}
		})
	}
}

// A node that is away keeps the volume, and its return brings the end of it.
func TestDeletionIsTriedAgain(t *testing.T) {
	ctx := context.Background()
	isLost := node("a", false)
	c, nodes := controllertest.New(t, isLost, class(), released("a")), &fakeNodes{err: errors.New("node a: connection refused")}
	start(t, c, nodes)
	if e := <-c.Events.Events; !strings.Contains(e, `VolumeFailedDelete node "a" is lost`) {
		t.Errorf("event %q", e)
	}
	time.Sleep(50 * time.Millisecond)
	if _, n := nodes.done(); n > 0 {
		t.Errorf("a lost node was asked %d times", n)
	}
	isLost.Status.Conditions[0].Status = corev1.ConditionFalse
	if _, err := c.Client.CoreV1().Nodes().Update(ctx, isLost, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if _, n := nodes.done(); n < 3 {
			return fmt.Sprintf("asked %d times", n)
		}
		return ""
	})
	if e := <-c.Events.Events; !strings.Contains(e, "VolumeFailedDelete node a: connection refused") {
		t.Errorf("event %q", e)
	}
	if _, err := c.Client.CoreV1().PersistentVolumes().Get(ctx, "pvc-u1", metav1.GetOptions{}); err != nil {
		t.Fatalf("the volume went before its folder: %v", err)
	}
	nodes.answer(nil)
	if _, err := c.Client.CoreV1().Nodes().Update(ctx, node("a", true), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		_, err := c.Client.CoreV1().PersistentVolumes().Get(ctx, "pvc-u1", metav1.GetOptions{})
		if got, _ := nodes.done(); !apierrors.IsNotFound(err) || got != "a/pvc-u1" {
			return fmt.Sprintf("%v, deleted %q", err, got)
		}
		return ""
	})
}
