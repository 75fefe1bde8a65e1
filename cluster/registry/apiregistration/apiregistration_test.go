package apiregistration

import (
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func served(t *testing.T, a *APIServices, o *metainternalversion.ListOptions) (names []string, version string) {
	t.Helper()
	obj, err := a.List(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	list := obj.(*apiregistrationv1.APIServiceList)
	for _, s := range list.Items {
		names = append(names, s.Name)
	}
	return names, list.ResourceVersion
}

func next(t *testing.T, w watch.Interface) string {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			return "closed"
		}
		return string(e.Type) + " " + e.Object.(*apiregistrationv1.APIService).Name
	default:
		return ""
	}
}

func TestServices(t *testing.T) {
	a := New()
	a.Builtin(schema.GroupVersion{Version: "v1"})
	a.Builtin(schema.GroupVersion{Group: "apps", Version: "v1"})
	a.Custom("example.com", []string{"v1", "v1beta1"})
	one := &metainternalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "v1.apps")}
	if names, _ := served(t, a, nil); !slices.Equal(names, []string{"v1.", "v1.apps", "v1.example.com", "v1beta1.example.com"}) {
		t.Errorf("served: %q", names)
	}
	if names, _ := served(t, a, one); !slices.Equal(names, []string{"v1.apps"}) {
		t.Errorf("by name: %q", names)
	}

	_, version := served(t, a, nil)
	w, err := a.Watch(t.Context(), &metainternalversion.ListOptions{ResourceVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	a.Custom("example.com", []string{"v1"})
	a.Custom("example.com", []string{"v1"})
	a.Custom("example.com", []string{"v1", "v2"})
	for _, want := range []string{"DELETED v1beta1.example.com", "ADDED v2.example.com", ""} {
		if got := next(t, w); got != want {
			t.Errorf("watch: got %q, want %q", got, want)
		}
	}
	if _, err := a.Watch(t.Context(), &metainternalversion.ListOptions{ResourceVersion: version}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch from before: %v", err)
	}
	for i := range watchQueue + 1 { // more than the watcher reads
		a.Custom("example.com", []string{"v1", []string{"v3", "v4"}[i%2]})
	}
	for got := ""; got != "closed"; got = next(t, w) {
	}
	w.Stop() // a second end does no harm

	streamed := true
	one.SendInitialEvents = &streamed
	if w, err = a.Watch(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if got := next(t, w); got != "ADDED v1.apps" {
		t.Errorf("first event: %q", got)
	}
	if e := <-w.ResultChan(); e.Type != watch.Bookmark || e.Object.(*apiregistrationv1.APIService).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("after the first events: %+v", e)
	}
	w.Stop()
	if got := next(t, w); got != "closed" {
		t.Errorf("after Stop: %q", got)
	}
}

func TestNothingIsCreated(t *testing.T) {
	a := New()
	a.Builtin(schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1beta1"})
	for name, want := range map[string]string{
		"v1beta1.metrics.k8s.io":        "already exists",
		"v1beta1.custom.metrics.k8s.io": "without metrics-server",
		"v1.wardle.example.com":         "API aggregation is not supported",
	} {
		version, group, _ := strings.Cut(name, ".")
		s := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: apiregistrationv1.APIServiceSpec{Group: group, Version: version}}
		if _, err := a.Create(t.Context(), s, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
