package core

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// serviceKind is Services without their allocation, which serviceREST adds.
// Names may begin with a digit, as in Kubernetes since RelaxedServiceNameValidation.
var serviceKind = registry.Kind{
	Resource: gvr("services"), Singular: "service",
	Object: &corev1.Service{}, List: &corev1.ServiceList{},
	HasStatus: true, ShortNames: []string{"svc"}, Categories: []string{"all"}, NoGeneration: true,
	ValidateName: apivalidation.NameIsDNSLabel,
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateService(obj.(*corev1.Service), nil)
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateServiceUpdate(obj.(*corev1.Service), old.(*corev1.Service))
	},
	ValidateStatusUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return validateServiceStatus(obj.(*corev1.Service), old.(*corev1.Service))
	},
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		// The load balancer's address goes with the load balancer.
		if s := obj.(*corev1.Service); !isLoadBalancer(s) {
			s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		}
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string { return serviceWarnings(obj.(*corev1.Service)) },
	Fields: func(obj runtime.Object) fields.Set {
		s := obj.(*corev1.Service)
		return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the Service"),
		registry.Column("Type", "How the Service is exposed"),
		registry.Column("Cluster-IP", "Virtual address inside the cluster"),
		registry.Column("External-IP", "Addresses outside the cluster"),
		registry.Column("Port(s)", "Ports, with the node port where there is one"),
		registry.Column("Age", "Time since creation"),
		registry.WideColumn("Selector", "Labels of the pods behind the Service"),
	},
	Row: func(obj runtime.Object) []any {
		s := obj.(*corev1.Service)
		ip := s.Spec.ClusterIP
		if len(s.Spec.ClusterIPs) > 0 {
			ip = s.Spec.ClusterIPs[0]
		}
		return []any{s.Name, string(s.Spec.Type), either(ip, "<none>"), externalIPs(s), either(servicePorts(s), "<none>"),
			registry.Age(s.CreationTimestamp), labels.FormatLabels(s.Spec.Selector)}
	},
}

// either gives s, or what stands for it in a column when it is empty.
func either(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}

// externalIPs is the EXTERNAL-IP cell.
func externalIPs(s *corev1.Service) string {
	fixed := strings.Join(s.Spec.ExternalIPs, ",")
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return either(fixed, "<none>")
	case corev1.ServiceTypeExternalName:
		return either(s.Spec.ExternalName, "<none>")
	case corev1.ServiceTypeLoadBalancer:
		given := sets.New[string]()
		for _, in := range s.Status.LoadBalancer.Ingress {
			switch {
			case in.IP != "":
				given.Insert(in.IP)
			case in.Hostname != "":
				given.Insert(in.Hostname)
			}
		}
		out := strings.Join(sets.List(given), ",")
		switch {
		case out == "" && fixed == "":
			return "<pending>"
		case out == "":
			return fixed
		case fixed == "":
			return out
		}
		all := append(strings.Split(out, ","), s.Spec.ExternalIPs...)
		sort.Strings(all)
		return strings.Join(all, ",")
	}
	return "<unknown>"
}

func servicePorts(s *corev1.Service) string {
	out := make([]string, len(s.Spec.Ports))
	for i, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		} else {
			out[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		}
	}
	return strings.Join(out, ",")
}

func serviceWarnings(s *corev1.Service) []string {
	var out []string
	add := func(is bool, msg string) {
		if is {
			out = append(out, msg)
		}
	}
	if isHeadless(s) {
		add(s.Spec.LoadBalancerIP != "", "spec.loadBalancerIP is ignored for headless services")
		add(len(s.Spec.ExternalIPs) > 0, "spec.externalIPs is ignored for headless services")
		add(s.Spec.SessionAffinity != corev1.ServiceAffinityNone, "spec.SessionAffinity is ignored for headless services")
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		add(len(s.Spec.ExternalIPs) > 0, `spec.externalIPs is ignored when spec.type is "ExternalName"`)
	}
	return out
}

func serviceStorage(o registry.Options, cfg Config, m map[string]rest.Storage) error {
	r := &ServiceStore{}
	kind := serviceKind
	kind.Customize = r.customize
	store, err := kind.NewStore(o)
	if err != nil {
		return err
	}
	m["services/status"] = store.Status() // before the hooks: it allocates nothing
	if err := r.init(store, cfg); err != nil {
		return err
	}
	m["services"] = r
	return nil
}
