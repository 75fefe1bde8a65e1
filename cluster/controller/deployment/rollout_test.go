package deployment_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
	"github.com/skiff-sh/skiff/cluster/controller/deployment"
	"github.com/skiff-sh/skiff/cluster/controller/replicaset"
)

func web(replicas int32, image string, change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	l := map[string]string{"app": "web"}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: ptr.To(intstr.FromString("25%")), MaxUnavailable: ptr.To(intstr.FromString("25%"))}},
			RevisionHistoryLimit:    ptr.To[int32](10),
			ProgressDeadlineSeconds: ptr.To[int32](600),
		},
	}
	for _, c := range change {
		c(d)
	}
	return d
}

type rig struct {
	*controllertest.Cluster
	t *testing.T
}

func start(t *testing.T, good func(*corev1.Pod) bool, d *appsv1.Deployment) rig {
	t.Helper()
	c := controllertest.New(t, d)
	c.RunPods(t, 2*time.Millisecond, good)
	ctl, err := deployment.New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	sets, err := replicaset.New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run, sets.Run)
	return rig{c, t}
}

func (r rig) get() *appsv1.Deployment {
	r.t.Helper()
	d, err := r.Client.AppsV1().Deployments("default").Get(context.Background(), "web", metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r rig) sets() []appsv1.ReplicaSet {
	r.t.Helper()
	list, err := r.Client.AppsV1().ReplicaSets("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return list.Items
}

func (r rig) pods() []corev1.Pod {
	r.t.Helper()
	list, err := r.Client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return list.Items
}

func (r rig) patch(spec map[string]any) {
	r.t.Helper()
	data, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.Client.AppsV1().Deployments("default").Patch(context.Background(), "web", types.StrategicMergePatchType, data, metav1.PatchOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r rig) setImage(image string) {
	r.t.Helper()
	r.patch(map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []map[string]any{{"name": "c", "image": image}}}}})
}

// rolledOut waits as kubectl rollout status does.
func (r rig) rolledOut(image string) {
	r.t.Helper()
	controllertest.Eventually(r.t, func() string {
		d := r.get()
		n := *d.Spec.Replicas
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != n || s.Replicas != n || s.AvailableReplicas != n {
			return fmt.Sprintf("generation %d, status %+v", d.Generation, s)
		}
		for _, p := range r.pods() {
			if p.Spec.Containers[0].Image != image {
				return "pod with image " + p.Spec.Containers[0].Image
			}
		}
		c := progressing(d)
		if c == nil || c.Reason != "NewReplicaSetAvailable" || c.Status != corev1.ConditionTrue {
			return fmt.Sprintf("Progressing %+v", c)
		}
		return ""
	})
}

func progressing(d *appsv1.Deployment) *appsv1.DeploymentCondition {
	for i := range d.Status.Conditions {
		if d.Status.Conditions[i].Type == appsv1.DeploymentProgressing {
			return &d.Status.Conditions[i]
		}
	}
	return nil
}

func (r rig) revision() string { return r.get().Annotations["deployment.kubernetes.io/revision"] }

func TestRollOutUpdateAndBack(t *testing.T) {
	r := start(t, nil, web(10, "v1"))
	r.rolledOut("v1")
	if got := r.revision(); got != "1" {
		t.Errorf("revision %q after creation", got)
	}

	// Watch the bounds while rolling: at most 13 pods are asked for, at least 8 are
	// available. Those that are no longer asked for may be there a little longer.
	var worst atomic.Value
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			asked, available := int32(0), 0
			for _, rs := range r.sets() {
				asked += *rs.Spec.Replicas
			}
			for _, p := range r.pods() {
				if len(p.Status.Conditions) > 0 {
					available++
				}
			}
			if asked > 13 || available < 8 {
				worst.Store(fmt.Sprintf("%d pods asked for, %d available", asked, available))
			}
		}
	}()
	r.setImage("v2")
	r.rolledOut("v2")
	close(stop)
	<-done
	if w := worst.Load(); w != nil {
		t.Errorf("out of bounds while rolling: %v", w)
	}
	if got := r.revision(); got != "2" {
		t.Errorf("revision %q after update", got)
	}

	r.setImage("v1") // what rollout undo does
	r.rolledOut("v1")
	if got := r.revision(); got != "3" {
		t.Errorf("revision %q after rollback", got)
	}
	if n := len(r.sets()); n != 2 {
		t.Errorf("%d replica sets, want the two templates", n)
	}
	for _, rs := range r.sets() {
		if rs.Spec.Template.Spec.Containers[0].Image == "v1" && rs.Annotations["deployment.kubernetes.io/revision-history"] != "1" {
			t.Errorf("revision history %q", rs.Annotations["deployment.kubernetes.io/revision-history"])
		}
		if rs.Labels["pod-template-hash"] == "" || !strings.HasSuffix(rs.Name, rs.Labels["pod-template-hash"]) {
			t.Errorf("replica set %s has labels %v", rs.Name, rs.Labels)
		}
	}
	r.Settles(t, 100*time.Millisecond)
}

func TestRecreateLeavesNoOverlap(t *testing.T) {
	r := start(t, nil, web(3, "v1", func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}))
	r.rolledOut("v1")
	mixed := make(chan string, 1)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			images := map[string]bool{}
			for _, p := range r.pods() {
				images[p.Spec.Containers[0].Image] = true
			}
			if len(images) > 1 {
				select {
				case mixed <- fmt.Sprint(images):
				default:
				}
			}
		}
	}()
	r.setImage("v2")
	r.rolledOut("v2")
	close(stop)
	<-done
	select {
	case m := <-mixed:
		t.Errorf("old and new pods at once: %s", m)
	default:
	}
}

func TestScale(t *testing.T) {
	r := start(t, nil, web(2, "v1"))
	r.rolledOut("v1")
	r.patch(map[string]any{"replicas": 7})
	r.rolledOut("v1")
	r.patch(map[string]any{"replicas": 0})
	controllertest.Eventually(t, func() string {
		if n := len(r.pods()); n != 0 || r.get().Status.Replicas != 0 {
			return fmt.Sprintf("%d pods", n)
		}
		return ""
	})
}

func TestPausedDeploymentDoesNotRoll(t *testing.T) {
	r := start(t, nil, web(2, "v1"))
	r.rolledOut("v1")
	r.patch(map[string]any{"paused": true})
	r.setImage("v2")
	controllertest.Eventually(t, func() string {
		d := r.get()
		if c := progressing(d); c == nil || c.Reason != "DeploymentPaused" || d.Status.ObservedGeneration != d.Generation {
			return fmt.Sprintf("Progressing %+v", c)
		}
		return ""
	})
	if n := len(r.sets()); n != 1 {
		t.Fatalf("%d replica sets while paused", n)
	}
	r.patch(map[string]any{"replicas": 4})
	controllertest.Eventually(t, func() string {
		if n := len(r.pods()); n != 4 {
			return fmt.Sprintf("%d pods: scaling must work while paused", n)
		}
		return ""
	})
	r.patch(map[string]any{"paused": false})
	r.rolledOut("v2")
}

func TestStuckRolloutKeepsOldPodsAndSaysSo(t *testing.T) {
	good := func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image != "broken" }
	r := start(t, good, web(4, "v1", func(d *appsv1.Deployment) { d.Spec.ProgressDeadlineSeconds = ptr.To[int32](1) }))
	r.rolledOut("v1")
	r.setImage("broken")
	controllertest.Eventually(t, func() string {
		c := progressing(r.get())
		if c == nil || c.Reason != "ProgressDeadlineExceeded" || c.Status != corev1.ConditionFalse {
			return fmt.Sprintf("Progressing %+v", c)
		}
		return ""
	})
	if s := r.get().Status; s.AvailableReplicas < 3 {
		t.Errorf("%d available, want at least 3", s.AvailableReplicas)
	}
	r.setImage("v1")
	r.rolledOut("v1")
}

func TestHistoryLimit(t *testing.T) {
	r := start(t, nil, web(1, "v1", func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = ptr.To[int32](2) }))
	for i := range 5 {
		image := fmt.Sprintf("v%d", i+1)
		r.setImage(image)
		r.rolledOut(image)
	}
	controllertest.Eventually(t, func() string {
		if n := len(r.sets()); n != 3 {
			return fmt.Sprintf("%d replica sets, want the new one and 2", n)
		}
		return ""
	})
}

func TestNameCollisionIsCounted(t *testing.T) {
	r := start(t, nil, web(1, "v1"))
	r.rolledOut("v1")
	name := r.sets()[0].Name
	// Somebody else's ReplicaSet has the name that the template asks for.
	c := controllertest.New(t, web(1, "v1"), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To[int32](0)}})
	c.RunPods(t, 0, nil)
	ctl, err := deployment.New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	sets, err := replicaset.New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run, sets.Run)
	again := rig{c, t}
	again.rolledOut("v1")
	if n := again.get().Status.CollisionCount; n == nil || *n != 1 {
		t.Errorf("collision count %v, want 1", n)
	}
}

func TestHundredReplicasAreQuick(t *testing.T) {
	r := start(t, nil, web(100, "v1"))
	began := time.Now()
	r.rolledOut("v1")
	t.Logf("100 replicas available after %v", time.Since(began))
}
