package events

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry/core"
	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

var newAPI = eventsv1.SchemeGroupVersion.WithResource("events")

// toInternal does what decoding a request does.
func toInternal(t *testing.T, env *registrytest.Env, obj runtime.Object) *corev1.Event {
	t.Helper()
	out, err := env.Scheme.ConvertToVersion(obj, schema.GroupVersion{Group: eventsv1.GroupName, Version: runtime.APIVersionInternal})
	if err != nil {
		t.Fatal(err)
	}
	return out.(*corev1.Event)
}

func full() *eventsv1.Event {
	now := metav1.NewMicroTime(time.Now().Truncate(time.Microsecond))
	e := &eventsv1.Event{
		EventTime: now, Series: &eventsv1.EventSeries{Count: 3, LastObservedTime: now},
		ReportingController: "example.com/c", ReportingInstance: "c-1", Action: "Binding", Reason: "Bound",
		Regarding: corev1.ObjectReference{Kind: "Pod", Name: "p", Namespace: "default", UID: "u", APIVersion: "v1", ResourceVersion: "7", FieldPath: "spec"},
		Related:   &corev1.ObjectReference{Kind: "Node", Name: "n"}, Note: "bound", Type: corev1.EventTypeNormal,
		DeprecatedSource: corev1.EventSource{Component: "x", Host: "h"}, DeprecatedFirstTimestamp: metav1.NewTime(now.Time.Truncate(time.Second)),
		DeprecatedLastTimestamp: metav1.NewTime(now.Time.Truncate(time.Second)), DeprecatedCount: 2,
	}
	e.Name, e.Namespace, e.Labels = "e", "default", map[string]string{"a": "b"}
	return e
}

// Nothing is lost on the way to the older form and back.
func TestConversion(t *testing.T) {
	env := registrytest.New(t)
	in := full()
	old := toInternal(t, env, in.DeepCopy())
	if old.InvolvedObject != in.Regarding || old.Message != "bound" || old.Series.Count != 3 || old.Source.Host != "h" || old.Count != 2 {
		t.Errorf("older form %+v", old)
	}
	back, err := env.Scheme.ConvertToVersion(old, eventsv1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	want := in.DeepCopy()
	want.SetGroupVersionKind(eventsv1.SchemeGroupVersion.WithKind("Event"))
	if diff := cmp.Diff(want, back.(*eventsv1.Event)); diff != "" {
		t.Error(diff)
	}
	list, err := env.Scheme.ConvertToVersion(&corev1.EventList{ListMeta: metav1.ListMeta{ResourceVersion: "5"}, Items: []corev1.Event{*old}}, eventsv1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	if l := list.(*eventsv1.EventList); l.ResourceVersion != "5" || len(l.Items) != 1 || l.Items[0].Note != "bound" {
		t.Errorf("list %+v", l)
	}
	// The core group still gets its own form.
	same, err := env.Scheme.ConvertToVersion(old, corev1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	if k := same.GetObjectKind().GroupVersionKind(); k != corev1.SchemeGroupVersion.WithKind("Event") {
		t.Errorf("kind %s", k)
	}
}

func TestFieldLabels(t *testing.T) {
	env := registrytest.New(t)
	kind := eventsv1.SchemeGroupVersion.WithKind("Event")
	for label, want := range map[string]string{"regarding.name": "involvedObject.name", "reportingController": "reportingComponent", "metadata.name": "metadata.name"} {
		if got, _, err := env.Scheme.ConvertFieldLabel(kind, label, "v"); err != nil || got != want {
			t.Errorf("%s becomes %s, %v", label, got, err)
		}
	}
	if _, _, err := env.Scheme.ConvertFieldLabel(kind, "involvedObject.name", "v"); err == nil || !strings.Contains(err.Error(), "field label not supported: involvedObject.name") {
		t.Errorf("error %v", err)
	}
}

// Both groups serve the same objects, by rules of their own.
func TestSharedStorage(t *testing.T) {
	env := registrytest.New(t, core.AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := registrytest.Context("default", newAPI)
	try := func(ctx context.Context, change func(*eventsv1.Event)) error {
		e := full()
		e.DeprecatedSource, e.DeprecatedCount = corev1.EventSource{}, 0
		e.DeprecatedFirstTimestamp, e.DeprecatedLastTimestamp = metav1.Time{}, metav1.Time{}
		change(e)
		_, err := env.Create(ctx, m["events"], toInternal(t, env, e))
		return err
	}
	for _, c := range []struct {
		change func(*eventsv1.Event)
		want   string
	}{
		{func(e *eventsv1.Event) { e.EventTime = metav1.MicroTime{} }, "eventTime: Required value"},
		{func(e *eventsv1.Event) { e.ReportingController = "" }, "reportingController: Required value"},
		{func(e *eventsv1.Event) { e.ReportingInstance = "" }, "reportingInstance: Required value"},
		{func(e *eventsv1.Event) { e.Action = strings.Repeat("a", 129) }, "action: Invalid value: \"\": can have at most 128 characters"},
		{func(e *eventsv1.Event) { e.Note = strings.Repeat("a", 1025) }, "message: Invalid value: \"\": can have at most 1024 characters"},
		{func(e *eventsv1.Event) { e.Type = "Loud" }, "type: Invalid value: \"\": has invalid value: Loud"},
		{func(e *eventsv1.Event) { e.DeprecatedCount = 1 }, "count: Invalid value: \"\": needs to be unset"},
		{func(e *eventsv1.Event) { e.Regarding.Namespace = "x" }, "involvedObject.namespace: Invalid value: \"x\": does not match event.namespace"},
	} {
		if err := try(ctx, c.change); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	// The older API asks for less.
	loose := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "old", Namespace: "default"}, Type: "Loud",
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default"}}
	if _, err := env.Create(registrytest.Context("default", corev1.SchemeGroupVersion.WithResource("events")), m["events"], loose); err != nil {
		t.Error(err)
	}
	if err := try(ctx, func(*eventsv1.Event) {}); err != nil {
		t.Fatal(err)
	}
	got, err := m["events"].(rest.Getter).Get(ctx, "e", &metav1.GetOptions{})
	if err != nil || got.(*corev1.Event).Message != "bound" {
		t.Errorf("stored %v, %v", got, err)
	}
	kv, ok := env.DB.View().Get("/registry/events/default/e")
	if !ok {
		t.Fatal("events are not stored with the core group's")
	}
	if left := time.Until(time.Unix(kv.Expires, 0)); left < 55*time.Minute || left > core.EventTTL+time.Minute {
		t.Errorf("expires in %v", left)
	}
	// Through the new API an event is written once, and counted up.
	changed := got.DeepCopyObject().(*corev1.Event)
	changed.Message = "other"
	if _, err := env.Update(ctx, m["events"], changed); err == nil || !strings.Contains(err.Error(), "message: Invalid value: \"other\": field is immutable") {
		t.Errorf("error %v", err)
	}
	counted := got.DeepCopyObject().(*corev1.Event)
	counted.Series.Count++
	if _, err := env.Update(ctx, m["events"], counted); err != nil {
		t.Error(err)
	}
}
