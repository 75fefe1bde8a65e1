package cluster

import (
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

const widgetCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size, description: "How big it is"}
    schema:
      openAPIV3Schema:
        type: object
        description: Widget is a thing.
        required: [spec]
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, description: "Size in parts."}
              colour: {type: string, default: green, enum: [green, red]}
              replicas: {type: integer}
            x-kubernetes-validations:
            - {rule: "self.size < 100", message: "too big"}
          status:
            type: object
            properties:
              replicas: {type: integer}
  - name: v1beta1
    served: true
    storage: false
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

var (
	crdGVR    = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	widgetGVR = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}
)

func object(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

func widget(t testing.TB, name, spec string) *unstructured.Unstructured {
	return object(t, "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: "+name+"}\nspec: {"+spec+"}\n")
}

// defineWidgets creates the definition and waits until it is served.
func defineWidgets(t testing.TB, d dynamic.Interface) {
	t.Helper()
	if _, err := d.Resource(crdGVR).Create(t.Context(), object(t, widgetCRD), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "widgets are served", func() (bool, error) {
		crd, err := d.Resource(crdGVR).Get(t.Context(), "widgets.example.com", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok && c["type"] == "Established" && c["status"] == "True" {
				_, err := d.Resource(widgetGVR).List(t.Context(), metav1.ListOptions{})
				return err == nil, err
			}
		}
		return false, err
	})
}

func TestCustomResources(t *testing.T) {
	s := newServer(t)
	d := s.dynamic(t)
	defineWidgets(t, d)
	ns := s.newNamespace(t)
	widgets := d.Resource(widgetGVR).Namespace(ns)

	w, err := widgets.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	made, err := widgets.Create(t.Context(), widget(t, "a", "size: 3, replicas: 1"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c, _, _ := unstructured.NestedString(made.Object, "spec", "colour"); c != "green" {
		t.Errorf("default colour is %q", c)
	}
	if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(*unstructured.Unstructured).GetName() != "a" {
		t.Errorf("first event is %v", e)
	}
	for _, c := range []struct{ spec, want string }{
		{"size: 0", "spec.size in body should be greater than or equal to 1"},
		{"size: many", "spec.size in body must be of type integer"},
		{"colour: red", "spec.size: Required value"},
		{"size: 2, colour: blue", `spec.colour: Unsupported value: "blue"`},
		{"size: 200", "too big"},
	} {
		if _, err := widgets.Create(t.Context(), widget(t, "bad", c.spec), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("{%s}: %v", c.spec, err)
		}
	}
	_, err = widgets.Create(t.Context(), widget(t, "bad", "size: 2, weight: 3"), metav1.CreateOptions{FieldValidation: "Strict"})
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "spec.weight"`) {
		t.Errorf("strict: %v", err)
	}

	made.Object["status"] = map[string]any{"replicas": int64(2)}
	if made, err = widgets.UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	scale, err := widgets.Get(t.Context(), "a", metav1.GetOptions{}, "scale")
	if err != nil || scale.GetKind() != "Scale" {
		t.Fatalf("scale: %v %v", scale, err)
	}
	if n, _, _ := unstructured.NestedInt64(scale.Object, "status", "replicas"); n != 2 {
		t.Errorf("scale has %d replicas", n)
	}
	if _, err := widgets.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Error(err)
	}
	applied, err := widgets.Apply(t.Context(), "a", widget(t, "a", "size: 9"), metav1.ApplyOptions{FieldManager: "tester", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := unstructured.NestedInt64(applied.Object, "spec", "replicas"); n != 5 {
		t.Errorf("after scale and apply: %v", applied.Object["spec"])
	}
	other, err := d.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1beta1", Resource: "widgets"}).Namespace(ns).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || other.GetAPIVersion() != "example.com/v1beta1" || other.GetUID() != made.GetUID() {
		t.Errorf("the other version: %v (%v)", other, err)
	}
	first, err := widgets.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(first.Items) != 1 || first.Items[0].GetAPIVersion() != "example.com/v1" {
		t.Errorf("list: %v %v", first, err)
	}

	// With the definition, everything it defines goes.
	if err := d.Resource(crdGVR).Delete(t.Context(), "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "widgets are gone", func() (bool, error) {
		_, err := widgets.List(t.Context(), metav1.ListOptions{})
		return apierrors.IsNotFound(err), err
	})
	if n := s.state.View().Count("/registry/example.com/widgets/"); n != 0 {
		t.Errorf("%d widgets are left in the store", n)
	}
}

func TestCustomResourcesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	d := s.dynamic(t)
	defineWidgets(t, d)
	if _, err := d.Resource(widgetGVR).Namespace("default").Create(t.Context(), widget(t, "a", "size: 3"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s = startServer(t, testConfig(dir))
	// Ready means that custom resources are served, without a wait.
	if _, err := s.dynamic(t).Resource(widgetGVR).Namespace("default").Get(t.Context(), "a", metav1.GetOptions{}); err != nil {
		t.Errorf("right after the restart: %v", err)
	}
}

func TestKubectl(t *testing.T) {
	s := newServer(t)
	defineWidgets(t, s.dynamic(t))
	ns := s.newNamespace(t)
	run := func(stdin string, args ...string) string {
		t.Helper()
		return s.mustKubectl(t, stdin, append([]string{"-n", ns}, args...)...)
	}
	has := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%q is missing in:\n%s", w, out)
			}
		}
	}
	for _, args := range [][]string{{"api-resources"}, {"explain", "widget.spec"}} { // both learn of a definition after it is served
		eventually(t, "kubectl "+args[0]+" knows widgets", func() (bool, error) {
			out, errs, err := s.kubectl(t, "", args...)
			return err == nil && strings.Contains(out, "idget") && !strings.Contains(errs, "idget"), err
		})
	}
	has(run("", "api-resources"), "widgets", "wd", "deployments", "deploy", "serviceaccounts", "clusterroles")
	has(run("", "explain", "deployment.spec.strategy.rollingUpdate"), "maxSurge", "maxUnavailable", "RollingUpdateDeployment")
	has(run("", "explain", "pod.spec.containers.resources"), "ResourceRequirements", "limits")
	has(run("", "explain", "widget.spec"), "Size in parts", "colour")
	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: one}\n"
	has(run(manifest, "apply", "-f", "-"), "configmap/m created")
	has(run(manifest, "apply", "-f", "-"), "configmap/m unchanged")
	changed := strings.Replace(manifest, "one", "two", 1)
	out, errs, err := s.kubectl(t, changed, "-n", ns, "diff", "-f", "-")
	if err == nil || errs != "" { // diff ends with 1 when there is a difference
		t.Errorf("diff: %v %s", err, errs)
	}
	has(out, "-  k: one", "+  k: two")
	has(run(changed, "apply", "--server-side", "--force-conflicts", "-f", "-"), "configmap/m serverside-applied")
	has(run("", "get", "configmap", "m", "-o", "jsonpath={.data.k}"), "two")
	has(run("apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 7}\n", "create", "-f", "-"), "widget.example.com/w created")
	has(run("", "get", "wd"), "NAME", "SIZE", "7")
	has(run("", "create", "deployment", "web", "--image=i:1", "--replicas=2"), "deployment.apps/web created")
	eventually(t, "columns of a deployment", func() (bool, error) {
		out := run("", "get", "deployment", "web")
		return strings.Contains(out, "UP-TO-DATE") && strings.Contains(out, "0/2"), nil
	})
	has(run("", "describe", "deployment", "web"), "RollingUpdateStrategy", "Replicas:")
	has(run("", "scale", "deployment", "web", "--replicas=0"), "scaled")
	has(run("", "label", "configmap", "m", "a=b"), "labeled")
	has(run("", "get", "all,wd"), "deployment.apps/web", "widget.example.com/w")
	_, errs, err = s.kubectl(t, strings.Replace(manifest, "\ndata:", "\ndota:", 1), "-n", ns, "apply", "-f", "-")
	if err == nil || !strings.Contains(errs, `unknown field "dota"`) {
		t.Errorf("unknown field: %v %s", err, errs)
	}
	has(run("", "delete", "configmap", "m"), `configmap "m" deleted`)
	has(run("", "auth", "can-i", "create", "pods"), "yes")
}

func TestPlainDiscoveryHasCustomGroups(t *testing.T) {
	s := newServer(t)
	groups := func() string {
		body, err := s.client.Discovery().RESTClient().Get().AbsPath("/apis").SetHeader("Accept", "application/json").Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	d := s.dynamic(t)
	if !strings.Contains(groups(), `"apiextensions.k8s.io/v1"`) {
		t.Error("the definitions' own group is missing in /apis")
	}
	defineWidgets(t, d)
	eventually(t, "group in /apis", func() (bool, error) { return strings.Contains(groups(), `"example.com/v1beta1"`), nil })
	if at, beta := strings.Index(groups(), `"example.com/v1"`), strings.Index(groups(), `"example.com/v1beta1"`); at > beta {
		t.Error("the preferred version does not come first")
	}
	if err := d.Resource(crdGVR).Delete(t.Context(), "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "group leaves /apis", func() (bool, error) { return !strings.Contains(groups(), "example.com"), nil })
}

func TestOpenAPIAfterARestartHasCustomResources(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	defineWidgets(t, s.dynamic(t))
	s.stop()
	s = startServer(t, testConfig(dir))
	began := time.Now()
	body, err := s.client.Discovery().RESTClient().Get().AbsPath("/openapi/v3").Do(t.Context()).Raw()
	if err != nil || !strings.Contains(string(body), "apis/example.com/v1") {
		t.Errorf("the first answer after the start lacks custom resources: %v %s", err, body)
	}
	t.Logf("first OpenAPI document after %v", time.Since(began))
}
