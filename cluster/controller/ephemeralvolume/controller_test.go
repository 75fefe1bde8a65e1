package ephemeralvolume

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func pod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}}}}}}}}}}
}

func TestClaimIsMadeAndMadeAnew(t *testing.T) {
	ctx := context.Background()
	c := controllertest.New(t, pod())
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	claims := c.Client.CoreV1().PersistentVolumeClaims("default")
	made := func() string {
		claim, err := claims.Get(ctx, "p-scratch", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if q := claim.Spec.Resources.Requests["storage"]; !metav1.IsControlledBy(claim, pod()) || claim.Labels["a"] != "b" || claim.Annotations["c"] != "d" || q.String() != "1Gi" {
			return fmt.Sprintf("claim %+v", claim)
		}
		return ""
	}
	controllertest.Eventually(t, made)
	if err := claims.Delete(ctx, "p-scratch", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, made)
	c.Settles(t, 50*time.Millisecond)
}

func TestClaimOfSomebodyElseIsNotUsed(t *testing.T) {
	c := controllertest.New(t, pod(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p-scratch"}})
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	select {
	case e := <-c.Events.Events:
		if !strings.HasPrefix(e, "Warning FailedBinding ephemeral volume scratch: PVC default/p-scratch was not created for pod default/p") {
			t.Errorf("event %q", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	if w := c.Writes(); len(w) > 0 {
		t.Errorf("writes %v", w)
	}
}

func TestPodThatEndsGetsNone(t *testing.T) {
	p := pod()
	p.Status.Phase = corev1.PodFailed
	c := controllertest.New(t, p)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	time.Sleep(100 * time.Millisecond)
	if w := c.Writes(); len(w) > 0 {
		t.Errorf("writes %v", w)
	}
}
