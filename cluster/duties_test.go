package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// addNode registers a node that nothing stands behind.
func (s *testServer) addNode(t testing.TB, name string) {
	t.Helper()
	ctx := context.Background()
	n, err := s.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("500")}
	n.Status = corev1.NodeStatus{Capacity: room, Allocatable: room,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	data, err := runtime.Encode(unstructured.UnstructuredJSONScheme, mustUnstructured(t, n))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

func mustUnstructured(t testing.TB, obj runtime.Object) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": m["status"]}}
	u.SetAPIVersion("v1")
	u.SetKind("Node")
	return u
}

// playNode makes pods with a node run and be ready, and lets those that are
// deleted go, as the node would, until the test ends.
func (s *testServer) playNode(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	pods := s.client.CoreV1().Pods("")
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); w.Stop(); <-done })
	insist := func(do func() error) { // a conflict with a controller is no reason to leave it
		for err := do(); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil; err = do() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	serial := 0
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok || e.Type == watch.Deleted || pod.Spec.NodeName == "" {
				continue
			}
			switch {
			case pod.DeletionTimestamp != nil:
				insist(func() error {
					return s.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
				})
			case pod.Status.Phase == corev1.PodPending:
				serial++
				ip := fmt.Sprintf("10.42.%d.%d", serial/250, serial%250+1)
				patch := fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}],"conditions":[{"type":"Ready","status":"True","lastTransitionTime":%q}]}}`,
					ip, ip, time.Now().UTC().Format(time.RFC3339))
				insist(func() error {
					_, err := s.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
					return err
				})
			}
		}
	}()
}

func gone(err error) (bool, error) {
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// A Deployment becomes pods, endpoints and a status; rolls, and goes again with
// all it made.
func TestDeploymentLifeOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	s.addNode(t, "n1")
	s.playNode(t)
	ns := s.newNamespace(t)
	deployments := s.client.AppsV1().Deployments(ns)
	began := time.Now()
	if _, err := deployments.Create(ctx, webDeployment("web", 100), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Selector: webDeployment("web", 1).Spec.Selector.MatchLabels, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rolled := func() (bool, error) {
		d, err := deployments.Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		n, st := *d.Spec.Replicas, d.Status
		return st.ObservedGeneration >= d.Generation && st.UpdatedReplicas == n && st.Replicas == n && st.AvailableReplicas == n, nil
	}
	eventually(t, "100 replicas available", rolled)
	t.Logf("100 replicas after %v (nodes not counted)", time.Since(began).Round(time.Millisecond))
	endpoints := func(want int) func() (bool, error) {
		return func() (bool, error) {
			list, err := s.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=web"})
			if err != nil {
				return false, err
			}
			n := 0
			for _, slice := range list.Items {
				for _, e := range slice.Endpoints {
					if e.Conditions.Ready != nil && *e.Conditions.Ready {
						n++
					}
				}
			}
			return n == want, nil
		}
	}
	eventually(t, "100 endpoints", endpoints(100))

	if _, err := deployments.Patch(ctx, "web", types.StrategicMergePatchType,
		[]byte(`{"spec":{"replicas":5,"template":{"metadata":{"annotations":{"v":"2"}}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "rolled to 5 new ones", rolled)
	eventually(t, "5 endpoints", endpoints(5))
	s.mustKubectl(t, "", "-n", ns, "rollout", "status", "deployment/web", "--timeout=10s")
	s.mustKubectl(t, "", "-n", ns, "rollout", "undo", "deployment/web")
	s.mustKubectl(t, "", "-n", ns, "rollout", "status", "deployment/web", "--timeout=10s")
	eventually(t, "revision 3", func() (bool, error) {
		d, err := deployments.Get(ctx, "web", metav1.GetOptions{})
		return err == nil && d.Annotations["deployment.kubernetes.io/revision"] == "3", err
	})
	eventually(t, "nothing written when done", quiet(s))

	if err := deployments.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "replica sets and pods collected", func() (bool, error) {
		sets, err := s.client.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		pods, err := s.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		return len(sets.Items)+len(pods.Items) == 0, err
	})
}

func TestForegroundAndOrphanOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	s.addNode(t, "n1")
	s.playNode(t)
	ns := s.newNamespace(t)
	sets := s.client.AppsV1().ReplicaSets(ns)
	makeSet := func(name string) {
		l := map[string]string{"set": name}
		d := webDeployment("x", 1)
		_, err := sets.Create(ctx, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To[int32](2), Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: d.Spec.Template.Spec}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" has its pods", func() (bool, error) {
			rs, err := sets.Get(ctx, name, metav1.GetOptions{})
			return err == nil && rs.Status.ReadyReplicas == 2, err
		})
	}
	podsOf := func(name string) []corev1.Pod {
		list, err := s.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "set=" + name})
		if err != nil {
			t.Fatal(err)
		}
		return list.Items
	}

	makeSet("front")
	// One pod holds out: the owner must wait for it.
	victim := podsOf("front")[0].Name
	if _, err := s.client.CoreV1().Pods(ns).Patch(ctx, victim, types.MergePatchType, []byte(`{"metadata":{"finalizers":["example.com/hold"]}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := sets.Delete(ctx, "front", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the held pod left", func() (bool, error) { return len(podsOf("front")) == 1, nil })
	if rs, err := sets.Get(ctx, "front", metav1.GetOptions{}); err != nil || !slices.Contains(rs.Finalizers, metav1.FinalizerDeleteDependents) {
		t.Fatalf("owner did not wait for its pod: %v", err)
	}
	if _, err := s.client.CoreV1().Pods(ns).Patch(ctx, victim, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "owner gone", func() (bool, error) {
		_, err := sets.Get(ctx, "front", metav1.GetOptions{})
		return gone(err)
	})

	makeSet("orphans")
	if err := sets.Delete(ctx, "orphans", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationOrphan)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "owner gone", func() (bool, error) {
		_, err := sets.Get(ctx, "orphans", metav1.GetOptions{})
		return gone(err)
	})
	eventually(t, "pods released", func() (bool, error) {
		for _, p := range podsOf("orphans") {
			if len(p.OwnerReferences) > 0 {
				return false, nil
			}
		}
		return len(podsOf("orphans")) == 2, nil
	})
}

// Custom resources own and are owned from the moment their kind is defined.
func TestCustomResourcesAreCollected(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	d := s.dynamic(t)
	ns := s.newNamespace(t)
	defineWidgets(t, d)
	kind := widget(t, "x", "").GroupVersionKind()
	widgets := d.Resource(schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: "widgets"}).Namespace(ns)
	var owner *unstructured.Unstructured
	eventually(t, "widget created", func() (bool, error) {
		w, err := widgets.Create(ctx, widget(t, "owner", "size: 3"), metav1.CreateOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		owner = w
		return err == nil, err
	})
	owned := configMap("owned", nil)
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUID()}}
	if _, err := s.client.CoreV1().ConfigMaps(ns).Create(ctx, owned, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := widgets.Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what the widget owned is gone", func() (bool, error) {
		_, err := s.client.CoreV1().ConfigMaps(ns).Get(ctx, "owned", metav1.GetOptions{})
		return gone(err)
	})
}

func TestNamespaceGoesWithItsContent(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	s.addNode(t, "n1")
	s.playNode(t)
	ns := s.newNamespace(t)
	if _, err := s.client.AppsV1().Deployments(ns).Create(ctx, webDeployment("web", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CoreV1().ConfigMaps(ns).Create(ctx, configMap("c", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pods", func() (bool, error) {
		d, err := s.client.AppsV1().Deployments(ns).Get(ctx, "web", metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == 3, err
	})
	began := time.Now()
	if err := s.client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "namespace gone", func() (bool, error) {
		_, err := s.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		return gone(err)
	})
	t.Logf("namespace with 3 pods gone after %v", time.Since(began).Round(time.Millisecond))
}

const daemonsAndPeers = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec: {containers: [{name: c, image: v1}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: v1}]}
`

// kubectl's own idea of a finished rollout and of history decides.
func TestDaemonSetAndStatefulSetOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	s.addNode(t, "n1")
	s.addNode(t, "n2")
	s.playNode(t)
	ns := s.newNamespace(t)
	s.mustKubectl(t, daemonsAndPeers, "-n", ns, "apply", "-f", "-")
	for _, name := range []string{"daemonset/log", "statefulset/db"} {
		s.mustKubectl(t, "", "-n", ns, "rollout", "status", name, "--timeout=20s")
		s.mustKubectl(t, "", "-n", ns, "set", "image", name, "c=v2")
		s.mustKubectl(t, "", "-n", ns, "rollout", "status", name, "--timeout=20s")
		s.mustKubectl(t, "", "-n", ns, "rollout", "undo", name)
		s.mustKubectl(t, "", "-n", ns, "rollout", "status", name, "--timeout=20s")
		if out := s.mustKubectl(t, "", "-n", ns, "get", name, "-o", "jsonpath={.spec.template.spec.containers[0].image}"); out != "v1" {
			t.Errorf("%s has image %s after undo", name, out)
		}
	}
	eventually(t, "nothing written when done", quiet(s))
}

func TestEvictionWithinABudgetOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	s.addNode(t, "n1") // nobody plays it: an evicted pod goes on ending
	ns := s.newNamespace(t)
	pods := s.client.CoreV1().Pods(ns)
	for _, name := range []string{"a", "b"} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Status.Phase = corev1.PodRunning
		made.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := pods.UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s.mustKubectl(t, "", "-n", ns, "create", "pdb", "web", "--selector=app=web", "--min-available=1")
	allowed := func(want int32) func() (bool, error) {
		return func() (bool, error) {
			b, err := s.client.PolicyV1().PodDisruptionBudgets(ns).Get(ctx, "web", metav1.GetOptions{})
			return err == nil && b.Status.ObservedGeneration == b.Generation && b.Status.DisruptionsAllowed == want, err
		}
	}
	eventually(t, "one eviction allowed", allowed(1))
	evict := func(name string) error {
		return pods.EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	if err := evict("a"); err != nil {
		t.Fatal(err)
	}
	if err := evict("b"); !apierrors.IsTooManyRequests(err) {
		t.Errorf("second eviction: %v", err)
	}
	eventually(t, "no eviction allowed", allowed(0))
	eventually(t, "nothing written when done", quiet(s))
}

// A drain takes what the budget allows, waits while the replacements have no
// place, and goes on when they are ready on another node.
func TestDrainWaitsForTheBudgetOnTheRealAPI(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	s.addNode(t, "n1")
	s.playNode(t)
	ns := s.newNamespace(t)
	if _, err := s.client.AppsV1().Deployments(ns).Create(ctx, webDeployment("web", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.mustKubectl(t, "", "-n", ns, "create", "pdb", "web", "--selector=app=web", "--min-available=2")
	budget := func(what, want string) {
		t.Helper()
		eventually(t, what, func() (bool, error) {
			b, err := s.client.PolicyV1().PodDisruptionBudgets(ns).Get(ctx, "web", metav1.GetOptions{})
			if err != nil || len(b.Status.Conditions) != 1 || len(b.Status.DisruptedPods) > 0 {
				return false, err
			}
			st := b.Status
			got := fmt.Sprintf("%d of %d, %d, %d %s", st.DisruptionsAllowed, st.CurrentHealthy, st.DesiredHealthy, st.ExpectedPods, st.Conditions[0].Reason)
			if got != want {
				return false, fmt.Errorf("status is %s, want %s", got, want)
			}
			return true, nil
		})
	}
	budget("one may go", "1 of 3, 2, 3 SufficientPods")
	_, errs, err := s.kubectl(t, "", "drain", "n1", "--timeout=3s")
	if err == nil || !strings.Contains(errs, "Cannot evict pod as it would violate the pod's disruption budget.") {
		t.Fatalf("drain over the budget: %v\n%s", err, errs)
	}
	budget("none may go", "0 of 2, 2, 3 InsufficientPods")
	pods, err := s.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("%d pods left on the drained node, error %v", len(pods.Items), err)
	}
	err = s.client.CoreV1().Pods(ns).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pods.Items[0].Name}})
	var status apierrors.APIStatus
	if !apierrors.IsTooManyRequests(err) || !errors.As(err, &status) || len(status.Status().Details.Causes) != 1 ||
		status.Status().Details.Causes[0].Message != "The disruption budget web needs 2 healthy pods and has 2 currently" {
		t.Fatalf("eviction at the budget: %#v", err)
	}

	s.addNode(t, "n2")
	budget("one may go again", "1 of 3, 2, 3 SufficientPods")
	s.mustKubectl(t, "", "drain", "n1", "--timeout=60s")
	budget("all are ready elsewhere", "1 of 3, 2, 3 SufficientPods")
	eventually(t, "nothing written when done", quiet(s))
}
