package core

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

// PodConfig is what the subresources of pods need.
type PodConfig struct {
	// Nodes reaches the API of the node that runs a pod. Nil leaves out log,
	// exec, attach, portforward and nodes/proxy.
	Nodes nodeproxy.NodeAccess
	// Client reads disruption budgets for evictions, and endpoint slices for
	// services/proxy. Nil evicts as if there were no budgets and leaves
	// services/proxy out.
	Client kubernetes.Interface
	// Authorizer is asked whether who opens a WebSocket may create it. Nil asks
	// nobody.
	Authorizer authorizer.Authorizer
	// ProxyTransport carries pods/proxy, services/proxy and nodes/proxy to
	// backends. Nil makes one that does not verify HTTPS backends, as those are
	// rarely signed by a known CA.
	ProxyTransport http.RoundTripper
}

// addPodDefaults registers the defaults of pods, pod templates and replication
// controllers, and how the options of their connections are read from a query.
func addPodDefaults(s *runtime.Scheme) error {
	defaults(s, podspec.SetPodDefaults)
	defaults(s, func(l *corev1.PodList) {
		for i := range l.Items {
			podspec.SetPodDefaults(&l.Items[i])
		}
	})
	defaults(s, setPodTemplateDefaults)
	defaults(s, func(l *corev1.PodTemplateList) {
		for i := range l.Items {
			setPodTemplateDefaults(&l.Items[i])
		}
	})
	defaults(s, setReplicationControllerDefaults)
	defaults(s, func(l *corev1.ReplicationControllerList) {
		for i := range l.Items {
			setReplicationControllerDefaults(&l.Items[i])
		}
	})
	return nodeproxy.AddConversions(s)
}

// podStorage adds pods, podtemplates and replicationcontrollers with their
// subresources to m.
func podStorage(o registry.Options, cfg Config, m map[string]rest.Storage) error {
	pods, err := podKind.AddTo(m, o)
	if err != nil {
		return err
	}
	binding := &podBinding{store: pods.Store}
	m["pods/binding"] = binding
	m["bindings"] = &legacyBinding{binding}
	m["pods/eviction"] = newPodEviction(pods.Store, cfg.Pods.Client)
	m["pods/ephemeralcontainers"] = podEphemeral(pods, o.Scheme)
	m["pods/resize"] = podResize(pods, o.Scheme)
	connections(pods, &cfg.Pods, m)
	if _, err := podTemplateKind.AddTo(m, o); err != nil {
		return err
	}
	return replicationControllerStorage(o, m)
}

// connections adds the subresources that lead to nodes, pods and endpoints.
func connections(pods *registry.Store, cfg *PodConfig, m map[string]rest.Storage) {
	m["pods/proxy"] = nodeproxy.NewPodProxy(pods.Store, cfg.ProxyTransport)
	if cfg.Nodes != nil {
		m["pods/log"] = nodeproxy.NewLogs(pods.Store, cfg.Nodes)
		m["pods/exec"] = nodeproxy.NewExec(pods.Store, cfg.Nodes, cfg.Authorizer)
		m["pods/attach"] = nodeproxy.NewAttach(pods.Store, cfg.Nodes, cfg.Authorizer)
		m["pods/portforward"] = nodeproxy.NewPortForward(pods.Store, cfg.Nodes, cfg.Authorizer)
		m["nodes/proxy"] = nodeproxy.NewNodeProxy(cfg.Nodes, cfg.ProxyTransport)
	}
	if services, ok := m["services"].(rest.Getter); ok && cfg.Client != nil {
		m["services/proxy"] = nodeproxy.NewServiceProxy(services, nodeproxy.SlicesFrom(cfg.Client.DiscoveryV1()), cfg.ProxyTransport)
	}
}

var podKind = registry.Kind{
	Resource:               gvr("pods"),
	Singular:               "pod",
	Object:                 &corev1.Pod{},
	List:                   &corev1.PodList{},
	HasStatus:              true,
	ShortNames:             []string{"po"},
	Categories:             []string{"all"},
	PrepareForCreate:       preparePod,
	PrepareForUpdate:       preparePodUpdate,
	PrepareForStatusUpdate: preparePodStatusUpdate,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateNewPod(obj.(*corev1.Pod))
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return podspec.ValidatePodUpdate(obj.(*corev1.Pod), old.(*corev1.Pod))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return podspec.ValidatePodStatusUpdate(obj.(*corev1.Pod), old.(*corev1.Pod))
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		return podspec.PodWarnings(obj.(*corev1.Pod), nil)
	},
	// People change templates, not pods: what is left are controllers, which
	// would pay for warnings that nobody reads.
	WarningsOnUpdate:    func(context.Context, runtime.Object, runtime.Object) []string { return nil },
	CheckGracefulDelete: podGrace,
	Fields:              podFields,
	Columns:             podColumns,
	Row:                 podRow,
}

func preparePod(_ context.Context, obj runtime.Object) {
	pod := obj.(*corev1.Pod)
	podspec.MirrorServiceAccount(&pod.Spec)
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: podspec.QOS(pod)}
	gateCondition(pod)
}

func preparePodUpdate(_ context.Context, obj, old runtime.Object) {
	pod, before := obj.(*corev1.Pod), old.(*corev1.Pod)
	podspec.MirrorServiceAccount(&pod.Spec)
	// Opening the last gate is seen in the condition at once.
	if len(pod.Spec.SchedulingGates) == 0 && len(before.Spec.SchedulingGates) > 0 {
		dropGateCondition(pod)
	}
}

func preparePodStatusUpdate(_ context.Context, obj, old runtime.Object) {
	pod, before := obj.(*corev1.Pod), old.(*corev1.Pod)
	if pod.Status.QOSClass == "" {
		pod.Status.QOSClass = before.Status.QOSClass
	}
	syncPodIPs(&pod.Status)
	keepObservedGenerations(&pod.Status, &before.Status)
}

// syncPodIPs keeps podIP and podIPs[0] the same; the single field wins, as those
// that write it may not know the list.
func syncPodIPs(s *corev1.PodStatus) {
	switch {
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	}
}

// keepObservedGenerations fills in what a writer leaves out that does not know the
// field, as one that was built for an earlier release.
func keepObservedGenerations(now, before *corev1.PodStatus) {
	if now.ObservedGeneration == 0 {
		now.ObservedGeneration = before.ObservedGeneration
	}
	had := map[corev1.PodConditionType][]int64{} // a type may be there more than once
	for _, c := range before.Conditions {
		had[c.Type] = append(had[c.Type], c.ObservedGeneration)
	}
	for i := range now.Conditions {
		c := &now.Conditions[i]
		list := had[c.Type]
		if len(list) == 0 {
			continue
		}
		if c.ObservedGeneration == 0 {
			c.ObservedGeneration = list[0]
		}
		had[c.Type] = list[1:]
	}
}

func validateNewPod(pod *corev1.Pod) field.ErrorList {
	errs := podspec.ValidatePod(pod)
	spec := field.NewPath("spec")
	if len(pod.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("ephemeralContainers"), "cannot be set on create"))
	}
	if len(pod.Spec.SchedulingGates) > 0 && pod.Spec.NodeName != "" {
		errs = append(errs, field.Forbidden(spec.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

const gatedMessage = "Scheduling is blocked due to non-empty scheduling gates"

func gateCondition(pod *corev1.Pod) {
	if len(pod.Spec.SchedulingGates) == 0 {
		return
	}
	setPodCondition(pod, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated, Message: gatedMessage,
	})
}

func dropGateCondition(pod *corev1.Pod) {
	kept := make([]corev1.PodCondition, 0, len(pod.Status.Conditions))
	for _, c := range pod.Status.Conditions {
		if c.Type != corev1.PodScheduled || c.Reason != corev1.PodReasonSchedulingGated {
			kept = append(kept, c)
		}
	}
	pod.Status.Conditions = kept
}

// podGrace settles how long a pod may take to end: what the caller wants, else
// what the pod wants, but nothing where no process can be running.
func podGrace(_ context.Context, obj runtime.Object, o *metav1.DeleteOptions) bool {
	if o == nil {
		return false
	}
	pod := obj.(*corev1.Pod)
	var grace int64
	switch {
	case o.GracePeriodSeconds != nil:
		grace = *o.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		grace = *pod.Spec.TerminationGracePeriodSeconds
	}
	switch {
	case pod.Spec.NodeName == "", pod.Status.Phase == corev1.PodFailed, pod.Status.Phase == corev1.PodSucceeded:
		grace = 0
	case grace < 0:
		grace = 1
	}
	o.GracePeriodSeconds = &grace
	return true
}

func podFields(obj runtime.Object) fields.Set {
	pod := obj.(*corev1.Pod)
	ips := make([]string, 0, len(pod.Status.PodIPs))
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	set := fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             "",
		"status.podIPs":            strings.Join(ips, ","),
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
	if len(ips) > 0 {
		set["status.podIP"] = ips[0]
	}
	return set
}
