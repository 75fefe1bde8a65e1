package backup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/skiff-sh/skiff/fsm"
)

// exportFile is a snapshot with one object of each form.
func exportFile(t testing.TB) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	content := state(t, map[string]string{
		"/registry/pods/default/web": pod(t, "web", "u1", "nginx:1", corev1.PodRunning),
		"/registry/configmaps/default/text": encoded(t, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "text", Namespace: "default", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}},
			Data:       map[string]string{"lines": "first\n\n  indented\n\nlast", "yaml": "- a: 1\n", "empty": "", "tabs": "\tx: 'y'\n\n\n"},
			BinaryData: map[string][]byte{"b": {0, 255}},
		}, "v1", "ConfigMap"),
		"/registry/namespaces/default":                                                 encoded(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, "v1", "Namespace"),
		"/registry/namespaces/other":                                                   encoded(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, "v1", "Namespace"),
		"/registry/example.com/widgets/default/w":                                      widget(1<<53, `,"managedFields":[{"manager":"x"}]`),
		"/registry/example.com/gadgets/alone":                                          `{"apiVersion":"example.com/v1","kind":"Gadget","metadata":{"name":"alone","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}]}}`,
		"/registry/secrets/default/s":                                                  sealedSecret(t, "x", "s", "hidden"),
		"/registry/newthings/default/n":                                                protobufMagic + "\n\x11\n\x02v9\x12\x0bUnheardOfXX\x12\x00",
		"/registry/events/default/e":                                                   encoded(t, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, Reason: "x"}, "v1", "Event"),
		"/registry/apiextensions.k8s.io/customresourcedefinitions/widgets.example.com": `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"}}`,
		"/skiff/keys/000001":                                                           "word",
	})
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func exported(t testing.TB, f *File, o ExportOptions) (*Exported, []unstructured.Unstructured, string) {
	t.Helper()
	if err := f.Rewind(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	x, err := Export(t.Context(), f, &out, o)
	if err != nil {
		t.Fatal(err)
	}
	text := out.Bytes()
	if !o.JSON {
		if text, err = yaml.YAMLToJSON(text); err != nil {
			t.Fatalf("%v in\n%s", err, out.String())
		}
	}
	var list unstructured.UnstructuredList
	if err := list.UnmarshalJSON(text); err != nil || list.GetKind() != "List" {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	if len(list.Items) != x.Objects {
		t.Errorf("%d objects in the list, %d are said to be", len(list.Items), x.Objects)
	}
	return x, list.Items, out.String()
}

func kinds(items []unstructured.Unstructured) (out []string) {
	for _, i := range items {
		out = append(out, strings.TrimPrefix(i.GetKind()+"/"+i.GetNamespace()+"/"+i.GetName(), "/"))
	}
	return out
}

func TestExport(t *testing.T) {
	f := exportFile(t)
	want := []string{
		"CustomResourceDefinition//widgets.example.com", "Namespace//default", "Namespace//other",
		"ConfigMap/default/text", "Secret/default/s",
		"Gadget//alone", "Widget/default/w", "Pod/default/web",
		"Event/default/e",
	}
	for _, asJSON := range []bool{false, true} {
		x, items, _ := exported(t, f, ExportOptions{JSON: asJSON, Open: rot("word")})
		if got := kinds(items); !slices.Equal(got, want) {
			t.Errorf("JSON %v: %q, want %q", asJSON, got, want)
		}
		if len(x.Sealed) != 0 || fmt.Sprint(x.Unknown) != "[newthings/default/n]" || x.Snapshot.TotalKeys != 11 {
			t.Errorf("JSON %v: %+v", asJSON, x)
		}
		for _, i := range items {
			switch i.GetKind() {
			case "ConfigMap":
				data, _, _ := unstructured.NestedStringMap(i.Object, "data")
				if data["lines"] != "first\n\n  indented\n\nlast" || data["tabs"] != "\tx: 'y'\n\n\n" || data["yaml"] != "- a: 1\n" {
					t.Errorf("JSON %v: data %q", asJSON, data)
				}
			case "Secret":
				if v, _, _ := unstructured.NestedString(i.Object, "data", "password"); v != "aGlkZGVu" {
					t.Errorf("JSON %v: password %q", asJSON, v)
				}
			case "Widget":
				if v, _, err := unstructured.NestedInt64(i.Object, "spec", "size"); v != 1<<53 {
					t.Errorf("JSON %v: size %d, %v", asJSON, v, err)
				}
			case "Pod":
				if v, _, _ := unstructured.NestedString(i.Object, "status", "phase"); v != "Running" {
					t.Errorf("JSON %v: phase %q", asJSON, v)
				}
			}
			if i.GetUID() != "" || i.GetResourceVersion() != "" || i.GetManagedFields() != nil {
				t.Errorf("JSON %v: %s keeps %v", asJSON, i.GetName(), i.Object["metadata"])
			}
		}
	}
}

func TestExportPart(t *testing.T) {
	f := exportFile(t)
	for _, c := range []struct {
		o    ExportOptions
		want string
	}{
		{ExportOptions{Namespace: "other"}, "[Namespace//other]"},
		{ExportOptions{Kind: "pod"}, "[Pod/default/web]"},
		{ExportOptions{Kind: "Pods", Namespace: "default"}, "[Pod/default/web]"},
		{ExportOptions{Kind: "widgets.example.com"}, "[Widget/default/w]"},
		{ExportOptions{Kind: "gadgets"}, "[Gadget//alone]"},
		{ExportOptions{Kind: "Namespace", Namespace: "default"}, "[Namespace//default]"},
		{ExportOptions{Kind: "Secret"}, "[]"},
		{ExportOptions{Kind: "Secret", JSON: true}, "[]"},
	} {
		x, items, _ := exported(t, f, c.o)
		if got := fmt.Sprint(kinds(items)); got != c.want || (c.o.Kind == "Secret") != (len(x.Sealed) == 1) {
			t.Errorf("%+v: %s, %+v", c.o, got, x)
		}
	}
	if _, items, _ := exported(t, f, ExportOptions{Unowned: true}); len(items) != 6 || slices.Contains(kinds(items), "Event/default/e") || slices.Contains(kinds(items), "Gadget//alone") {
		t.Errorf("unowned: %q", kinds(items))
	}
	_, items, text := exported(t, f, ExportOptions{Kind: "ConfigMap", Raw: true, JSON: true})
	if len(items[0].GetManagedFields()) != 1 || items[0].GetResourceVersion() == "" {
		t.Errorf("raw: %s", text)
	}
}

func TestExportRefuses(t *testing.T) {
	f := exportFile(t)
	for _, c := range []struct {
		o    ExportOptions
		want string
	}{
		{ExportOptions{Kind: "Deployment"}, "none of kind Deployment; it has "},
		{ExportOptions{Namespace: "nowhere"}, "namespace nowhere, which it does not have"},
		{ExportOptions{Namespace: "other", Kind: "Pod"}, "none of that"},
		{ExportOptions{Open: rot("other")}, "wrong cluster key"},
	} {
		if err := f.Rewind(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := Export(t.Context(), f, &out, c.o); err == nil || !strings.Contains(err.Error(), c.want) || out.Len() > 0 {
			t.Errorf("%+v: %v, and %d bytes", c.o, err, out.Len())
		}
	}
	// Of a damaged file nothing comes out.
	b, err := os.ReadFile(f.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-4] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := Open(bad, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var out bytes.Buffer
	if _, err := Export(t.Context(), g, &out, ExportOptions{}); !errors.Is(err, fsm.ErrDamaged) || out.Len() > 0 {
		t.Errorf("damaged: %v, and %d bytes", err, out.Len())
	}
}
