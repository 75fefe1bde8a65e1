package core

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/check"
)

const roleLabel = "node-role.kubernetes.io/"

var nodeKind = registry.Kind{
	Resource: gvr("nodes"), Singular: "node",
	Object: &corev1.Node{}, List: &corev1.NodeList{},
	ClusterScoped: true, HasStatus: true, ShortNames: []string{"no"},
	// A node registers itself together with what it has.
	KeepStatusOnCreate: true, NoGeneration: true,
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		n := obj.(*corev1.Node)
		syncPodCIDRs(n)
		stampTaints(n, nil, metav1.Now().Rfc3339Copy())
	},
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		n := obj.(*corev1.Node)
		syncPodCIDRs(n)
		stampTaints(n, old.(*corev1.Node), metav1.Now().Rfc3339Copy())
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateNodeSpec(obj.(*corev1.Node), nil)
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateNodeUpdate(obj.(*corev1.Node), old.(*corev1.Node))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateNodeUpdate(obj.(*corev1.Node), old.(*corev1.Node))
	},
	Fields: func(obj runtime.Object) fields.Set {
		return fields.Set{"spec.unschedulable": fmt.Sprint(obj.(*corev1.Node).Spec.Unschedulable)}
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the node"),
		registry.Column("Status", "Whether the node is ready and takes pods"),
		registry.Column("Roles", "From its node-role.kubernetes.io labels"),
		registry.Column("Age", "Time since it registered"),
		registry.Column("Version", "Version of its agent"),
		registry.WideColumn("Internal-IP", "Address inside the cluster"),
		registry.WideColumn("External-IP", "Address outside the cluster"),
		registry.WideColumn("OS-Image", "Operating system"),
		registry.WideColumn("Kernel-Version", "Version of the kernel"),
		registry.WideColumn("Container-Runtime", "What runs its containers"),
	},
	Row: func(obj runtime.Object) []any {
		n := obj.(*corev1.Node)
		info := n.Status.NodeInfo
		return []any{n.Name, nodeStatus(n), either(strings.Join(nodeRoles(n), ","), "<none>"), registry.Age(n.CreationTimestamp), info.KubeletVersion,
			nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
			either(info.OSImage, "<unknown>"), either(info.KernelVersion, "<unknown>"), either(info.ContainerRuntimeVersion, "<unknown>")}
	},
}

func setNodeDefaults(n *corev1.Node) {
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) []string {
	var out []string
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, roleLabel); ok && role != "" {
			out = append(out, role)
		} else if k == "kubernetes.io/role" && v != "" {
			out = append(out, v)
		}
	}
	sort.Strings(out)
	return slices.Compact(out)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return "<none>"
}

// syncPodCIDRs keeps spec.podCIDR and spec.podCIDRs[0] the same; the single
// field wins.
func syncPodCIDRs(n *corev1.Node) {
	s := &n.Spec
	switch {
	case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
		s.PodCIDRs = []string{s.PodCIDR}
	case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
		s.PodCIDR = s.PodCIDRs[0]
	}
}

// stampTaints notes since when taints hold that evict pods, where the client does
// not say so: the tolerations of pods count from then.
func stampTaints(n, old *corev1.Node, now metav1.Time) {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectNoExecute || t.TimeAdded != nil {
			continue
		}
		t.TimeAdded = &now
		if old == nil {
			continue
		}
		for _, o := range old.Spec.Taints {
			if o.Key == t.Key && o.Value == t.Value && o.Effect == t.Effect {
				t.TimeAdded = o.TimeAdded // as it was, with a time or without
			}
		}
	}
}

// validateNodeSpec checks the spec; the status is reported later. Old is nil on
// create.
func validateNodeSpec(n, old *corev1.Node) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if len(n.Spec.Taints) > 0 {
		errs = append(errs, validateTaints(n.Spec.Taints, path.Child("taints"))...)
	}
	cidrs := path.Child("podCIDRs")
	var was []string
	if old != nil {
		was = old.Spec.PodCIDRs
	}
	for i, c := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(cidrs.Index(i), c, true, was)...)
	}
	switch len(n.Spec.PodCIDRs) {
	case 0, 1:
	case 2:
		if strings.Contains(n.Spec.PodCIDRs[0], ":") == strings.Contains(n.Spec.PodCIDRs[1], ":") {
			errs = append(errs, field.Invalid(cidrs, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
	default:
		errs = append(errs, field.Invalid(cidrs, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
	}
	//lint:ignore SA1019 what is gone is refused
	if n.Spec.ConfigSource != nil {
		errs = append(errs, field.Forbidden(path.Child("configSource"), "configSource may not be set, as the dynamic kubelet configuration is gone"))
	}
	return errs
}

func validateTaints(taints []corev1.Taint, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, t := range taints {
		p := path.Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, p.Child("key"))...)
		errs = append(errs, check.Messages(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
		errs = append(errs, check.OneOf(p.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule,
			corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
		if slices.ContainsFunc(taints[:i], func(o corev1.Taint) bool { return o.Key == t.Key && o.Effect == t.Effect }) {
			e := field.Duplicate(p, t)
			e.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, e)
		}
	}
	return errs
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	errs := validateNodeSpec(n, old)
	status, spec := field.NewPath("status"), field.NewPath("spec")
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range n.Status.Addresses {
		if seen[a] {
			errs = append(errs, field.Duplicate(status.Child("addresses").Index(i), a))
		}
		seen[a] = true
	}
	errs = append(errs, validateQuantities(n.Status.Capacity, status.Child("capacity"))...)
	errs = append(errs, validateQuantities(n.Status.Allocatable, status.Child("allocatable"))...)
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(spec.Child("podCIDRs"), `node updates may not change podCIDR except from "" to valid`))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Forbidden(spec.Child("providerID"), `node updates may not change providerID except from "" to valid`))
	}
	return errs
}

// validateQuantities checks a list of resources: non-negative, and whole where
// the resource is counted.
func validateQuantities(list corev1.ResourceList, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, q := range list {
		errs = append(errs, validateQuantity(string(name), q, path.Key(string(name)))...)
	}
	return errs
}
