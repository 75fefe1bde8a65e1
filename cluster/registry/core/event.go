package core

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// EventTTL is how long an Event is kept after its last change.
const EventTTL = time.Hour

const (
	maxEventName = 128  // of action, reason and reporting instance
	maxEventNote = 1024 // of the message
	needsUnset   = "needs to be unset"
)

// EventKind is Events. The group events.k8s.io serves the same data.
var EventKind = registry.Kind{
	Resource: gvr("events"), Singular: "event",
	Object: &corev1.Event{}, List: &corev1.EventList{},
	ShortNames:          []string{"ev"},
	AllowCreateOnUpdate: true,
	Validate: func(ctx context.Context, obj runtime.Object) field.ErrorList {
		return validateEvent(ctx, obj.(*corev1.Event))
	},
	ValidateUpdate: func(ctx context.Context, obj, old runtime.Object) field.ErrorList {
		return validateEventUpdate(ctx, obj.(*corev1.Event), old.(*corev1.Event))
	},
	Customize: func(s *genericregistry.Store) {
		s.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return uint64(EventTTL / time.Second), nil }
	},
	Fields: func(obj runtime.Object) fields.Set {
		e := obj.(*corev1.Event)
		source := e.Source.Component
		if source == "" {
			source = e.ReportingController
		}
		return fields.Set{
			"involvedObject.kind": e.InvolvedObject.Kind, "involvedObject.namespace": e.InvolvedObject.Namespace,
			"involvedObject.name": e.InvolvedObject.Name, "involvedObject.uid": string(e.InvolvedObject.UID),
			"involvedObject.apiVersion": e.InvolvedObject.APIVersion, "involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
			"involvedObject.fieldPath": e.InvolvedObject.FieldPath, "reason": e.Reason, "reportingComponent": e.ReportingController,
			"source": source, "type": e.Type,
		}
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Last Seen", "When it was seen last"),
		registry.Column("Type", "Normal or Warning"),
		registry.Column("Reason", "Why it happened, in one word"),
		registry.Column("Object", "What it is about"),
		registry.WideColumn("Subobject", "The part of the object it is about"),
		registry.WideColumn("Source", "Who reports it"),
		registry.Column("Message", "What happened"),
		registry.WideColumn("First Seen", "When it was seen first"),
		{Name: "Count", Type: "integer", Description: "How often it was seen", Priority: 1},
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the Event", Priority: 1},
	},
	Row: eventRow,
}

func eventRow(obj runtime.Object) []any {
	e := obj.(*corev1.Event)
	first := registry.Age(e.FirstTimestamp)
	if e.FirstTimestamp.IsZero() {
		first = microAge(e.EventTime)
	}
	last, count := registry.Age(e.LastTimestamp), e.Count
	if e.LastTimestamp.IsZero() {
		last = first
	}
	switch {
	case e.Series != nil:
		last, count = microAge(e.Series.LastObservedTime), e.Series.Count
	case count == 0:
		count = 1 // reported by the newer API, which does not count single events
	}
	target := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		target += "/" + e.InvolvedObject.Name
	}
	source, instance := e.Source.Component, e.Source.Host
	if source == "" {
		source = e.ReportingController
	}
	if instance == "" {
		instance = e.ReportingInstance
	}
	if instance != "" {
		source += ", " + instance
	}
	return []any{last, e.Type, e.Reason, target, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message), first, int64(count), e.Name}
}

func microAge(t metav1.MicroTime) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

// byNewAPI says whether the request came through events.k8s.io, whose rules
// are stricter.
func byNewAPI(ctx context.Context) bool {
	info, ok := genericapirequest.RequestInfoFrom(ctx)
	return ok && info.APIGroup == eventsv1.GroupName
}

func validateEvent(ctx context.Context, e *corev1.Event) field.ErrorList {
	errs := validateEventFields(ctx, e)
	if !byNewAPI(ctx) {
		return errs
	}
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	errs = append(errs, validateEventType(e)...)
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"firstTimestamp", !e.FirstTimestamp.IsZero()},
		{"lastTimestamp", !e.LastTimestamp.IsZero()},
		{"count", e.Count != 0},
		{"source", e.Source.Component != "" || e.Source.Host != ""},
	} {
		if f.set {
			errs = append(errs, field.Invalid(field.NewPath(f.name), "", needsUnset))
		}
	}
	return errs
}

func validateEventType(e *corev1.Event) field.ErrorList {
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		return field.ErrorList{field.Invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", e.Type))}
	}
	return nil
}

// validateEventFields holds for both APIs.
func validateEventFields(ctx context.Context, e *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	// Events about cluster-scoped objects live in the default namespace.
	about := e.InvolvedObject.Namespace
	if about != e.Namespace && !(about == "" && e.Namespace == metav1.NamespaceDefault) {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace"))
	}
	if !e.EventTime.IsZero() {
		reporter := field.NewPath("reportingComponent")
		if byNewAPI(ctx) {
			reporter = field.NewPath("reportingController")
		}
		if e.ReportingController == "" {
			errs = append(errs, field.Required(reporter, ""))
		}
		errs = append(errs, check.QualifiedName(reporter, e.ReportingController)...)
		for _, f := range []struct{ name, value string }{
			{"reportingInstance", e.ReportingInstance}, {"action", e.Action}, {"reason", e.Reason},
		} {
			if f.value == "" {
				errs = append(errs, field.Required(field.NewPath(f.name), ""))
			}
			if len(f.value) > maxEventName {
				errs = append(errs, field.Invalid(field.NewPath(f.name), "", fmt.Sprintf("can have at most %v characters", maxEventName)))
			}
		}
		if len(e.Message) > maxEventNote {
			errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", maxEventNote)))
		}
	}
	return append(errs, check.Messages(field.NewPath("namespace"), e.Namespace, validation.IsDNS1123Subdomain(e.Namespace))...)
}

func validateEventUpdate(ctx context.Context, e, old *corev1.Event) field.ErrorList {
	errs := validateEventFields(ctx, e)
	if !byNewAPI(ctx) {
		return errs
	}
	errs = append(errs, validateEventType(e)...)
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"involvedObject", e.InvolvedObject, old.InvolvedObject},
		{"reason", e.Reason, old.Reason},
		{"message", e.Message, old.Message},
		{"source", e.Source, old.Source},
		{"firstTimestamp", e.FirstTimestamp, old.FirstTimestamp},
		{"lastTimestamp", e.LastTimestamp, old.LastTimestamp},
		{"count", e.Count, old.Count},
		{"type", e.Type, old.Type},
		{"action", e.Action, old.Action},
		{"related", e.Related, old.Related},
		{"reportingController", e.ReportingController, old.ReportingController},
		{"reportingInstance", e.ReportingInstance, old.ReportingInstance},
	} {
		errs = append(errs, check.Unchanged(field.NewPath(f.name), f.now, f.was)...)
	}
	// The stored form has whole microseconds.
	if !e.EventTime.Truncate(time.Microsecond).Equal(old.EventTime.Truncate(time.Microsecond)) {
		errs = append(errs, field.Invalid(field.NewPath("eventTime"), e.EventTime, check.Immutable))
	}
	return errs
}
