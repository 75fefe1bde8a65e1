package scheduler

import (
	"context"
	"strconv"
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

	"github.com/skiff-sh/skiff/cluster/localpath"
)

func annotated(kv ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		for i := 0; i < len(kv); i += 2 {
			n.Annotations[kv[i]] = kv[i+1]
		}
	}
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, change ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, f := range change {
		f(c)
	}
	return c
}

var (
	waits      = class("waits", "example.com/disk", storagev1.VolumeBindingWaitForFirstConsumer)
	static     = class("static", storagehelpers.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer)
	immediate  = class("immediate", "example.com/disk", storagev1.VolumeBindingImmediate)
	localPaths = class("local-path", localpath.Provisioner, storagev1.VolumeBindingWaitForFirstConsumer)
)

func claim(name, class, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func boundTo(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase = volume, corev1.ClaimBound
		c.Annotations[storagehelpers.AnnBindCompleted] = "yes"
	}
}

func selected(node string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[storagehelpers.AnnSelectedNode] = node }
}

func modes(m ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = m }
}

func volume(name, class, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{"storage": resource.MustParse(size)},
	}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
	for _, f := range change {
		f(v)
	}
	return v
}

func onlyOn(host string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}}}}}}
	}
}

func with(claims ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
	}
}

func TestVolumesKeepPodsFromNodes(t *testing.T) {
	hosts := []runtime.Object{node("a"), node("b")}
	now := metav1.Now()
	for _, tc := range []struct {
		name string
		objs []runtime.Object
		pod  func(*corev1.Pod)
		want string
	}{
		{"no claim", nil, with("c"), `0/2 nodes are available: persistentvolumeclaim "c" not found.`},
		{"claim is going", []runtime.Object{claim("c", "", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.DeletionTimestamp, c.Finalizers = &now, []string{"x/y"}
		})}, with("c"), `0/2 nodes are available: persistentvolumeclaim "c" is being deleted.`},
		{"not bound", []runtime.Object{immediate, claim("c", "immediate", "1Gi")}, with("c"), "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		{"class is missing", []runtime.Object{claim("c", "gone", "1Gi")}, with("c"), "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		{"volume is missing", []runtime.Object{claim("c", "", "1Gi", boundTo("v"))}, with("c"), `0/2 nodes are available: persistentvolumeclaim "c" bound to non-existent persistentvolume "v".`},
		{"volume on another node", []runtime.Object{claim("c", "", "1Gi", boundTo("v")), volume("v", "", "1Gi", onlyOn("c"))}, with("c"),
			"0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."},
		{"volumes on two nodes", []runtime.Object{claim("c", "", "1Gi", boundTo("v")), volume("v", "", "1Gi", onlyOn("a")), claim("d", "", "1Gi", boundTo("w")), volume("w", "", "1Gi", onlyOn("b"))},
			with("c", "d"), "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."},
		{"nothing to bind", []runtime.Object{static, claim("c", "static", "2Gi"), volume("v", "static", "1Gi")}, with("c"),
			"0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"one volume for two claims", []runtime.Object{static, claim("c", "static", "1Gi"), claim("d", "static", "1Gi"), volume("v", "static", "1Gi")}, with("c", "d"),
			"0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"topology", []runtime.Object{class("zoned", "x", storagev1.VolumeBindingWaitForFirstConsumer, func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"z"}}}}}
		}), claim("c", "zoned", "1Gi")}, with("c"), "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"no local path", []runtime.Object{localPaths, claim("c", "local-path", "1Gi")}, with("c"), "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"local path for many nodes", []runtime.Object{localPaths, node("a", annotated(localpath.RootAnnotation, "/x")), node("b", annotated(localpath.RootAnnotation, "/x")),
			claim("c", "local-path", "1Gi", modes(corev1.ReadWriteMany))}, with("c"),
			`0/2 nodes are available: 2 persistentvolumeclaim "c": spec.accessModes: a volume on one node can only be ReadWriteOnce or ReadWriteOncePod.`},
		{"local path larger than the disk", []runtime.Object{localPaths, node("a", annotated(localpath.RootAnnotation, "/x", localpath.CapacityAnnotation, "1000")),
			node("b", annotated(localpath.RootAnnotation, "/x", localpath.CapacityAnnotation, "2000")), claim("c", "local-path", "1Gi")}, with("c"),
			"0/2 nodes are available: 2 node(s) did not have enough free storage."},
		{"used by another pod", []runtime.Object{claim("c", "", "1Gi", boundTo("v"), modes(corev1.ReadWriteOncePod)), volume("v", "", "1Gi"), pod("other", on("a"), with("c"))}, with("c"),
			"0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod."},
		{"zone", []runtime.Object{node("a", label(corev1.LabelTopologyZone, "z1")), node("b", label(corev1.LabelTopologyZone, "z2")), claim("c", "", "1Gi", boundTo("v")),
			volume("v", "", "1Gi", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{corev1.LabelTopologyZone: "z3__z4"} })}, with("c"),
			"0/2 nodes are available: 2 node(s) had no available volume zone."},
		{"no ephemeral claim yet", nil, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
		}, `0/2 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim "p-v".`},
		{"ephemeral claim of somebody else", []runtime.Object{claim("p-v", "", "1Gi", boundTo("v")), volume("v", "", "1Gi")}, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
		}, "0/2 nodes are available: PVC default/p-v was not created for pod default/p (pod is not owner)."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objs := tc.objs
			named := map[string]bool{}
			for _, o := range objs {
				if n, ok := o.(*corev1.Node); ok {
					named[n.Name] = true
				}
			}
			for _, h := range hosts {
				if n := h.(*corev1.Node); !named[n.Name] {
					objs = append(objs, n.DeepCopy())
				}
			}
			r := start(t, objs...)
			r.create(t, pod("p", tc.pod))
			eventually(t, "refused", func() bool { return r.binder.why("p") != "" })
			if got, want := r.binder.why("p"), "False Unschedulable "+tc.want; got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// storage does what the binder and the provisioner of a cluster do, once they
// have been told what the scheduler chose.
func (r *rig) storage(t *testing.T, name string, told func(*corev1.PersistentVolumeClaim) string) {
	t.Helper()
	ctx := context.Background()
	claims := r.client.CoreV1().PersistentVolumeClaims("default")
	for deadline := 0; ; deadline++ {
		c, err := claims.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		if v := told(c); v != "" {
			boundTo(v)(c)
			c.ResourceVersion = strconv.FormatInt(r.binder.version.Add(1)+1000, 10)
			if _, err := claims.Update(ctx, c, metav1.UpdateOptions{}); err != nil {
				t.Error(err)
			}
			return
		}
		if deadline > 10000 {
			t.Error("nothing was chosen")
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestPodIsBoundAfterItsVolumes(t *testing.T) {
	ctx := context.Background()
	t.Run("made on the node", func(t *testing.T) {
		r := start(t, node("a"), waits, claim("c", "waits", "1Gi"))
		r.create(t, pod("p", with("c")))
		r.storage(t, "c", func(c *corev1.PersistentVolumeClaim) string {
			if c.Annotations[storagehelpers.AnnSelectedNode] != "a" {
				return ""
			}
			if n := r.binder.node("p"); n != "" {
				t.Errorf("bound to %s before its volume was there", n)
			}
			if _, err := r.client.CoreV1().PersistentVolumes().Create(ctx, volume("v", "waits", "1Gi", onlyOn("a")), metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
			return "v"
		})
		eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
		eventually(t, "no assumption is left", func() bool {
			r.s.state.volumes.mu.Lock()
			defer r.s.state.volumes.mu.Unlock()
			return len(r.s.state.volumes.assumed) == 0
		})
	})
	t.Run("smallest that exists", func(t *testing.T) {
		r := start(t, node("a"), node("b"), static, claim("c", "static", "1Gi"),
			volume("small", "static", "1Mi", onlyOn("a")), volume("right", "static", "2Gi", onlyOn("b")), volume("large", "static", "3Gi", onlyOn("b")))
		r.create(t, pod("p", with("c")))
		r.storage(t, "c", func(*corev1.PersistentVolumeClaim) string {
			if v, err := r.client.CoreV1().PersistentVolumes().Get(ctx, "right", metav1.GetOptions{}); err != nil || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != "c" {
				return ""
			}
			return "right"
		})
		eventually(t, "bound", func() bool { return r.binder.node("p") == "b" })
	})
	t.Run("where another pod's decision put it", func(t *testing.T) {
		r := start(t, node("a"), node("b"), waits, claim("c", "waits", "1Gi", selected("b")), volume("v", "waits", "1Gi"))
		r.create(t, pod("p", with("c")))
		r.create(t, pod("q", with("c")))
		r.storage(t, "c", func(*corev1.PersistentVolumeClaim) string {
			if !r.s.state.isAssumed("p") || !r.s.state.isAssumed("q") {
				return ""
			}
			return "v"
		})
		eventually(t, "both bound", func() bool { return r.binder.node("p") == "b" && r.binder.node("q") == "b" })
	})
	t.Run("elsewhere when the provisioner can't", func(t *testing.T) {
		r := start(t, node("a"), node("b"), waits, claim("c", "waits", "1Gi"))
		r.create(t, pod("p", with("c")))
		first := ""
		claims := r.client.CoreV1().PersistentVolumeClaims("default")
		eventually(t, "a node is chosen", func() bool {
			c, err := claims.Get(ctx, "c", metav1.GetOptions{})
			if err == nil {
				first = c.Annotations[storagehelpers.AnnSelectedNode]
			}
			return first != ""
		})
		n, err := r.client.CoreV1().Nodes().Get(ctx, first, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n.Spec.Unschedulable = true
		if _, err := r.client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "cordon is seen", func() bool { return r.s.state.node(first).Spec.Unschedulable })
		c, err := claims.Get(ctx, "c", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		delete(c.Annotations, storagehelpers.AnnSelectedNode)
		if _, err := r.binder.UpdateClaim(ctx, c); err != nil {
			t.Fatal(err)
		}
		other := map[string]string{"a": "b", "b": "a"}[first]
		r.storage(t, "c", func(c *corev1.PersistentVolumeClaim) string {
			if c.Annotations[storagehelpers.AnnSelectedNode] != other {
				return ""
			}
			if _, err := r.client.CoreV1().PersistentVolumes().Create(ctx, volume("v", "waits", "1Gi", onlyOn(other)), metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
			return "v"
		})
		eventually(t, "bound", func() bool { return r.binder.node("p") == other })
	})
	t.Run("elsewhere when the node is gone", func(t *testing.T) {
		r := start(t, node("a"), waits, claim("c", "waits", "1Gi"))
		r.create(t, pod("p", with("c")))
		claims := r.client.CoreV1().PersistentVolumeClaims("default")
		eventually(t, "the node is chosen", func() bool {
			c, err := r.s.state.volumes.claims.PersistentVolumeClaims("default").Get("c")
			return err == nil && c.Annotations[storagehelpers.AnnSelectedNode] == "a"
		})
		if err := r.client.CoreV1().Nodes().Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "refused", func() bool { return !r.s.state.isAssumed("p") && r.binder.why("p") != "" })
		c, err := claims.Get(ctx, "c", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		delete(c.Annotations, storagehelpers.AnnSelectedNode) // as provisioners do
		if _, err := r.binder.UpdateClaim(ctx, c); err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.CoreV1().Nodes().Create(ctx, node("b"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		r.storage(t, "c", func(c *corev1.PersistentVolumeClaim) string {
			if c.Annotations[storagehelpers.AnnSelectedNode] != "b" {
				return ""
			}
			if _, err := r.client.CoreV1().PersistentVolumes().Create(ctx, volume("v", "waits", "1Gi", onlyOn("b")), metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
			return "v"
		})
		eventually(t, "bound", func() bool { return r.binder.node("p") == "b" })
	})
	t.Run("pod that is deleted waits no more", func(t *testing.T) {
		r := start(t, node("a"), waits, claim("c", "waits", "1Gi"))
		r.create(t, pod("p", with("c")))
		assumed := func() int {
			r.s.state.volumes.mu.Lock()
			defer r.s.state.volumes.mu.Unlock()
			return len(r.s.state.volumes.assumed)
		}
		eventually(t, "it waits", func() bool { return assumed() == 1 })
		if err := r.client.CoreV1().Pods("default").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "forgotten", func() bool { return assumed() == 0 && !r.s.state.isAssumed("p") })
	})
}

// A claim or a volume that goes while a decision about it is carried out is no
// reason to forget the pod, nor to keep from others what it would have got.
func TestPodOutlivesItsClaim(t *testing.T) {
	ctx := context.Background()
	c := claim("c", "static", "1Gi")
	r := start(t, node("a"), static, c, claim("d", "static", "1Gi"), volume("v", "static", "1Gi"))
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.binder.claimRead = func(name string) error {
		if name != "c" {
			return nil
		}
		var err error
		once.Do(func() {
			close(asked)
			<-answer
			err = apierrors.NewNotFound(corev1.Resource("persistentvolumeclaims"), name)
		})
		return err
	}
	r.create(t, pod("p", with("c")))
	<-asked
	r.create(t, pod("q", with("d"))) // its volume is meant for p
	eventually(t, "refused", func() bool { return r.binder.why("q") != "" })
	if err := r.client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deletion is seen", func() bool {
		_, err := r.s.state.volumes.claims.PersistentVolumeClaims("default").Get("c")
		return err != nil
	})
	eventually(t, "refused for good", func() bool {
		r.s.queue.mu.Lock()
		defer r.s.queue.mu.Unlock()
		it := r.s.queue.items["q"]
		return it != nil && it.place == inParked && it.attempts > 1
	})
	close(answer)
	eventually(t, "p waits for its claim", func() bool {
		return r.binder.why("p") == `False Unschedulable 0/1 nodes are available: persistentvolumeclaim "c" not found.`
	})
	r.storage(t, "d", func(*corev1.PersistentVolumeClaim) string {
		if v, err := r.client.CoreV1().PersistentVolumes().Get(ctx, "v", metav1.GetOptions{}); err != nil || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != "d" {
			return ""
		}
		return "v"
	})
	eventually(t, "bound", func() bool { return r.binder.node("q") == "a" })
}

// A volume may have the older label of a zone, and the node only the newer one.
func TestOlderZoneLabel(t *testing.T) {
	r := start(t, node("a", label(corev1.LabelTopologyZone, "z1")), node("b", label(corev1.LabelTopologyZone, "z2")), claim("c", "", "1Gi", boundTo("v")),
		volume("v", "", "1Gi", func(v *corev1.PersistentVolume) {
			v.Labels = map[string]string{corev1.LabelFailureDomainBetaZone: "z2"}
		}))
	r.create(t, pod("p", with("c")))
	eventually(t, "bound", func() bool { return r.binder.node("p") == "b" })
}

// A claim that only one pod may use is free again when that pod is gone.
func TestOnePodClaimIsFreeAgain(t *testing.T) {
	r := start(t, node("a"), claim("c", "", "1Gi", boundTo("v"), modes(corev1.ReadWriteOncePod)), volume("v", "", "1Gi"), pod("other", on("a"), with("c")))
	r.create(t, pod("p", with("c")))
	eventually(t, "refused", func() bool { return r.binder.why("p") != "" })
	if err := r.client.CoreV1().Pods("default").Delete(context.Background(), "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return r.binder.node("p") == "a" })
}
