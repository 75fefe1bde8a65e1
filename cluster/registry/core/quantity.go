package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry/check"
)

// counted are the resources that come in whole numbers, beside extended ones.
var counted = []corev1.ResourceName{
	corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
}

func isCounted(name string) bool {
	if slices.Contains(counted, corev1.ResourceName(name)) || strings.HasPrefix(name, "count/") {
		return true
	}
	// Extended resources have a domain that is not Kubernetes' own.
	name = strings.TrimPrefix(name, "requests.")
	domain, _, ok := strings.Cut(name, "/")
	return ok && domain != "kubernetes.io" && !strings.HasSuffix(domain, ".kubernetes.io")
}

func validateQuantity(name string, q resource.Quantity, path *field.Path) field.ErrorList {
	errs := check.NonNegativeQuantity(path, q)
	if isCounted(name) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(path, q, "must be an integer"))
	}
	return errs
}
