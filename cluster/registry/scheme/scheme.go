// Package scheme builds the runtime.Scheme in which the Go types of k8s.io/api
// serve both as the external and as the internal version of each group, so
// that no conversions have to be generated.
//
// Events are the exception: the one of events.k8s.io has the one of the core
// group as its internal version, so that both groups serve the same data.
//
// Limits: another group whose kinds are served in two versions registers its
// conversions with the scheme it gets from New; the codec writes TypeMeta in
// place, so objects shared by watchers are copied before they are encoded.
package scheme

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// groups lists what is served, in the order of discovery.
var groups = []struct {
	gv  schema.GroupVersion
	add func(*runtime.Scheme) error
}{
	{corev1.SchemeGroupVersion, corev1.AddToScheme},
	{appsv1.SchemeGroupVersion, appsv1.AddToScheme},
	{authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme},
	{authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme},
	{autoscalingv1.SchemeGroupVersion, autoscalingv1.AddToScheme},
	{coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme},
	{discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme},
	{eventsv1.SchemeGroupVersion, eventsv1.AddToScheme},
	{nodev1.SchemeGroupVersion, nodev1.AddToScheme},
	{policyv1.SchemeGroupVersion, policyv1.AddToScheme},
	{rbacv1.SchemeGroupVersion, rbacv1.AddToScheme},
	{metricsv1beta1.SchemeGroupVersion, metricsv1beta1.AddToScheme},
	{apiregistrationv1.SchemeGroupVersion, apiregistrationv1.AddToScheme},
	{storagev1.SchemeGroupVersion, storagev1.AddToScheme},
}

var ofPods = []string{"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
	"spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName"}

// selectable lists the field selectors each kind accepts beyond metadata.name
// and metadata.namespace.
var selectable = map[schema.GroupVersionKind][]string{
	corev1.SchemeGroupVersion.WithKind("Pod"):                   ofPods,
	metricsv1beta1.SchemeGroupVersion.WithKind("PodMetrics"):    ofPods,
	corev1.SchemeGroupVersion.WithKind("Node"):                  {"spec.unschedulable"},
	corev1.SchemeGroupVersion.WithKind("Namespace"):             {"status.phase"},
	corev1.SchemeGroupVersion.WithKind("Secret"):                {"type"},
	corev1.SchemeGroupVersion.WithKind("Service"):               {"spec.clusterIP", "spec.type"},
	corev1.SchemeGroupVersion.WithKind("ReplicationController"): {"status.replicas"},
	appsv1.SchemeGroupVersion.WithKind("ReplicaSet"):            {"status.replicas"},
	corev1.SchemeGroupVersion.WithKind("Event"): {"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
		"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"},
}

// New builds the scheme that the API server decodes, defaults and encodes
// with. The registries add their defaults to it.
func New() (*runtime.Scheme, error) {
	s, err := NewExternal()
	if err != nil {
		return nil, err
	}
	if err := addEvents(s); err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := s.SetVersionPriority(g.gv); err != nil {
			return nil, err
		}
		internal := schema.GroupVersion{Group: g.gv.Group, Version: runtime.APIVersionInternal}
		for kind, t := range s.KnownTypes(g.gv) {
			// Only the group's own kinds, not ListOptions, WatchEvent …
			if own(t) && !s.Recognizes(internal.WithKind(kind)) {
				s.AddKnownTypeWithName(internal.WithKind(kind), reflect.New(t).Interface().(runtime.Object))
			}
		}
	}
	for gvk, labels := range selectable {
		if err := s.AddFieldLabelConversionFunc(gvk, fieldLabels(labels)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func own(t reflect.Type) bool {
	return slices.ContainsFunc([]string{"k8s.io/api/", "k8s.io/metrics/", "k8s.io/kube-aggregator/"}, func(p string) bool { return strings.HasPrefix(t.PkgPath(), p) })
}

// NewExternal has the served versions only: OpenAPI models are named by it, so
// that no internal name leaks.
func NewExternal() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, g := range groups {
		if err := g.add(s); err != nil {
			return nil, fmt.Errorf("types of %s: %w", g.gv, err)
		}
	}
	v1 := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(s, v1)
	s.AddUnversionedTypes(v1, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	return s, nil
}

func fieldLabels(extra []string) runtime.FieldLabelConversionFunc {
	known := map[string]bool{"metadata.name": true, "metadata.namespace": true}
	for _, l := range extra {
		known[l] = true
	}
	return func(label, value string) (string, string, error) {
		if !known[label] {
			return "", "", fmt.Errorf("field label not supported: %s", label)
		}
		return label, value, nil
	}
}
