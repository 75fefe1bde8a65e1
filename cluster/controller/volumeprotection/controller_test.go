package volumeprotection

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func claim(deleted bool, finalizers ...string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "c", Finalizers: finalizers}}
	if deleted {
		c.DeletionTimestamp = ptr.To(metav1.Now())
	}
	return c
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "p"}, Spec: corev1.PodSpec{NodeName: "n", Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func finalizers(c *controllertest.Cluster, kind string) string {
	ctx := context.Background()
	var m metav1.Object
	var err error
	if kind == "claim" {
		m, err = c.Client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "data", metav1.GetOptions{})
	} else {
		m, err = c.Client.CoreV1().PersistentVolumes().Get(ctx, "data", metav1.GetOptions{})
	}
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(m.GetFinalizers())
}

func TestProtection(t *testing.T) {
	pv := func(deleted bool, phase corev1.PersistentVolumePhase, finalizers ...string) *corev1.PersistentVolume {
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "data", Finalizers: finalizers}, Status: corev1.PersistentVolumeStatus{Phase: phase}}
		if deleted {
			v.DeletionTimestamp = ptr.To(metav1.Now())
		}
		return v
	}
	ephemeral := func(owner bool) []runtime.Object {
		p := pod(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
			p.Name = "da"
			p.Spec.Volumes[0].Name = "ta"
		})
		c := claim(true, claimFinalizer)
		if c.Name = "da-ta"; owner {
			c.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(p, corev1.SchemeGroupVersion.WithKind("Pod"))}
		}
		return []runtime.Object{p, c}
	}
	for _, tc := range []struct {
		name string
		kind string
		objs []runtime.Object
		want []string
	}{
		{"claim of before", "claim", []runtime.Object{claim(false, "a/b")}, []string{"a/b", claimFinalizer}},
		{"claim nobody uses", "claim", []runtime.Object{claim(true, "a/b", claimFinalizer)}, []string{"a/b"}},
		{"claim in use", "claim", []runtime.Object{claim(true, claimFinalizer), pod()}, []string{claimFinalizer}},
		{"claim of a pod that has finished", "claim", []runtime.Object{claim(true, claimFinalizer), pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, []string{claimFinalizer}},
		{"claim of a pod without node", "claim", []runtime.Object{claim(true, "a/b", claimFinalizer), pod(func(p *corev1.Pod) { p.Spec.NodeName = "" })}, []string{"a/b"}},
		{"claim of the name in another namespace", "claim", []runtime.Object{claim(true, "a/b", claimFinalizer), pod(func(p *corev1.Pod) { p.Namespace = "other" })}, []string{"a/b"}},
		{"volume of before", "volume", []runtime.Object{pv(false, corev1.VolumeAvailable)}, []string{volumeFinalizer}},
		{"volume in use", "volume", []runtime.Object{pv(true, corev1.VolumeBound, volumeFinalizer)}, []string{volumeFinalizer}},
		{"volume nobody uses", "volume", []runtime.Object{pv(true, corev1.VolumeReleased, volumeFinalizer, "a/b")}, []string{"a/b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := controllertest.New(t, tc.objs...)
			ctl, err := New(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			c.Run(t, ctl.Run)
			check := func() string {
				if got := finalizers(c, tc.kind); got != fmt.Sprint(tc.want) {
					return got
				}
				return ""
			}
			controllertest.Eventually(t, check)
			time.Sleep(50 * time.Millisecond)
			if why := check(); why != "" {
				t.Errorf("did not stay: %s", why)
			}
		})
	}
	for _, owner := range []bool{true, false} {
		objs := ephemeral(owner)
		if got := uses(objs[0].(*corev1.Pod), objs[1].(*corev1.PersistentVolumeClaim)); got != owner {
			t.Errorf("ephemeral volume, owner %v: used %v", owner, got)
		}
	}
	ended := ephemeral(true)
	p := ended[0].(*corev1.Pod)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = ptr.To(metav1.Now()), ptr.To[int64](0)
	if uses(p, ended[1].(*corev1.PersistentVolumeClaim)) {
		t.Error("a pod that only waits for its claim keeps it")
	}
}

// The end of the pod is the end of a claim that was deleted before.
func TestClaimGoesWithItsLastPod(t *testing.T) {
	c := controllertest.New(t, claim(true, claimFinalizer, "a/b"), pod())
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	time.Sleep(50 * time.Millisecond)
	if got := finalizers(c, "claim"); !slices.Equal([]string{got}, []string{fmt.Sprint([]string{claimFinalizer, "a/b"})}) {
		t.Fatalf("finalizers %s", got)
	}
	if err := c.Client.CoreV1().Pods("default").Delete(context.Background(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if got := finalizers(c, "claim"); got != "[a/b]" {
			return got
		}
		return ""
	})
	if names := controller.ClaimNames(pod()); !slices.Equal(names, []string{"data"}) {
		t.Errorf("claims %v", names)
	}
}
