package namespace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

type discoverer struct{ err error }

func (d discoverer) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	all := metav1.Verbs{"list", "delete", "deletecollection"}
	return []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "pods", Namespaced: true, Verbs: all}, {Name: "configmaps", Namespaced: true, Verbs: all},
			{Name: "bindings", Namespaced: true, Verbs: metav1.Verbs{"create"}}}},
		{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "widgets", Namespaced: true, Verbs: metav1.Verbs{"list", "delete"}}}},
	}, d.err
}

func object(apiVersion, kind, namespace, name string, finalizers ...string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: apiVersion, Kind: kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Finalizers: finalizers},
	}
}

// start runs the controller over objects, with a namespace a in deletion. Objects
// with finalizers survive deletion.
func start(t *testing.T, d discoverer, objects ...runtime.Object) (*controllertest.Cluster, *metadatafake.FakeMetadataClient) {
	t.Helper()
	now := metav1.Now()
	c := controllertest.New(t, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &now, Finalizers: []string{"test"}},
		Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
	})
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	client := metadatafake.NewSimpleMetadataClient(scheme, objects...)
	client.PrependReactor("delete", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		obj, err := client.Tracker().Get(a.GetResource(), a.GetNamespace(), a.(clienttesting.DeleteAction).GetName())
		if m, ok := obj.(*metav1.PartialObjectMetadata); err == nil && ok && len(m.Finalizers) > 0 {
			return true, nil, nil
		}
		return false, nil, nil
	})
	client.PrependReactor("delete-collection", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		kinds := map[string]string{"pods": "Pod", "configmaps": "ConfigMap"}
		for _, obj := range objects {
			m := obj.(*metav1.PartialObjectMetadata)
			if m.Kind == kinds[a.GetResource().Resource] && m.Namespace == a.GetNamespace() && len(m.Finalizers) == 0 {
				_ = client.Tracker().Delete(a.GetResource(), m.Namespace, m.Name)
			}
		}
		return true, nil, nil
	})
	ctl, err := New(Config{Config: c.Config, Discovery: d, Metadata: client})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	return c, client
}

func finalizers(t *testing.T, c *controllertest.Cluster) (n int, ns *corev1.Namespace) {
	t.Helper()
	ns, err := c.Client.CoreV1().Namespaces().Get(context.Background(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range c.Client.Actions() {
		if a.GetSubresource() == "finalize" {
			if len(a.(clienttesting.CreateAction).GetObject().(*corev1.Namespace).Spec.Finalizers) == 0 {
				return 0, ns
			}
		}
	}
	return 1, ns
}

func TestEmptiesAndFinalizes(t *testing.T) {
	c, client := start(t, discoverer{},
		object("v1", "Pod", "a", "p"), object("v1", "ConfigMap", "a", "x"), object("v1", "ConfigMap", "a", "y"),
		object("example.com/v1", "Widget", "a", "w"), object("v1", "ConfigMap", "b", "stays"))
	controllertest.Eventually(t, func() string {
		if n, _ := finalizers(t, c); n != 0 {
			return "not finalized"
		}
		return ""
	})
	for _, gone := range []struct{ resource, group, name string }{{"pods", "", "p"}, {"configmaps", "", "x"}, {"configmaps", "", "y"}, {"widgets", "example.com", "w"}} {
		if _, err := client.Resource(schema.GroupVersionResource{Group: gone.group, Version: "v1", Resource: gone.resource}).Namespace("a").Get(context.Background(), gone.name, metav1.GetOptions{}); err == nil {
			t.Errorf("%s %s is still there", gone.resource, gone.name)
		}
	}
	if _, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("b").Get(context.Background(), "stays", metav1.GetOptions{}); err != nil {
		t.Errorf("object of another namespace: %v", err)
	}
}

func condition(ns *corev1.Namespace, ct corev1.NamespaceConditionType) corev1.NamespaceCondition {
	for _, c := range ns.Status.Conditions {
		if c.Type == ct {
			return c
		}
	}
	return corev1.NamespaceCondition{}
}

func TestPodsGoFirstAndWhatRemainsIsTold(t *testing.T) {
	c, client := start(t, discoverer{}, object("v1", "Pod", "a", "p", "example.com/hold"), object("v1", "ConfigMap", "a", "x"))
	controllertest.Eventually(t, func() string {
		_, ns := finalizers(t, c)
		remaining, finals := condition(ns, corev1.NamespaceContentRemaining), condition(ns, corev1.NamespaceFinalizersRemaining)
		if remaining.Message != "Some resources are remaining: pods. has 1 resource instances" ||
			finals.Message != "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances" {
			return fmt.Sprintf("%+v", ns.Status.Conditions)
		}
		return ""
	})
	maps := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("a")
	if _, err := maps.Get(context.Background(), "x", metav1.GetOptions{}); err != nil {
		t.Errorf("deleted before the last pod: %v", err)
	}
	c.Settles(t, 200*time.Millisecond)
	if err := client.Tracker().Delete(pods, "a", "p"); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if n, _ := finalizers(t, c); n != 0 {
			return "not finalized"
		}
		return ""
	})
}

func TestDiscoveryFailureHoldsTheNamespace(t *testing.T) {
	c, _ := start(t, discoverer{errors.New("metrics.k8s.io does not answer")}, object("v1", "ConfigMap", "a", "x"))
	controllertest.Eventually(t, func() string {
		_, ns := finalizers(t, c)
		got := condition(ns, corev1.NamespaceDeletionDiscoveryFailure)
		if got.Status != corev1.ConditionTrue || !strings.Contains(got.Message, "metrics.k8s.io does not answer") {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	if n, _ := finalizers(t, c); n == 0 {
		t.Error("finalized without knowing what there is")
	}
}
