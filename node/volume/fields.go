package volume

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Fields answers fieldRef and resourceFieldRef for one pod, in environment
// variables and downward API files.
type Fields struct {
	NodeName string
	PodIPs   []string
	HostIPs  []string
	// Allocatable of the node is what a container without a limit may use.
	Allocatable v1.ResourceList
}

// Field returns the value of a field path such as metadata.labels['a'].
func (f Fields) Field(pod *v1.Pod, path string) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
		return "", fmt.Errorf("unsupported fieldPath: %s", path)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName", "spec.host": // what it was called once
		return f.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(f.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(f.HostIPs, ","), nil
	case "status.podIP":
		return first(f.PodIPs), nil
	case "status.podIPs":
		return strings.Join(f.PodIPs, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", path)
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func subscript(path string) (base, key string, ok bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	return strings.Cut(strings.TrimSuffix(path, "']"), "['")
}

func formatMap(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	lines := make([]string, 0, len(m))
	for _, k := range keys {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

// Resource returns a container's request or limit in units of the divisor,
// rounded up. A missing limit is that of the pod, or what the node can give.
func (f Fields) Resource(pod *v1.Pod, c *v1.Container, name string, divisor resource.Quantity) (string, error) {
	which, res, ok := strings.Cut(name, ".")
	if !ok {
		return "", fmt.Errorf("unsupported container resource : %v", name)
	}
	rn := v1.ResourceName(res)
	var q resource.Quantity
	switch which {
	case "limits":
		var has bool
		huge := strings.HasPrefix(res, v1.ResourceHugePagesPrefix) // never more than the limit, so always with one
		if q, has = c.Resources.Limits[rn]; !huge && (!has || q.IsZero()) {
			if p := podLimit(pod, rn); !p.IsZero() {
				q = p
			} else if a, ok := f.Allocatable[rn]; ok {
				q = a
			}
		}
	case "requests":
		q = c.Resources.Requests[rn]
	default:
		return "", fmt.Errorf("unsupported container resource : %v", name)
	}
	if rn != v1.ResourceCPU && rn != v1.ResourceMemory && rn != v1.ResourceEphemeralStorage && !strings.HasPrefix(res, v1.ResourceHugePagesPrefix) {
		return "", fmt.Errorf("unsupported container resource : %v", name)
	}
	if rn == v1.ResourceCPU {
		d := int64(1000)
		if !divisor.IsZero() {
			d = divisor.MilliValue()
		}
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(d))), 10), nil
	}
	d := int64(1)
	if !divisor.IsZero() {
		d = divisor.Value()
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(d))), 10), nil
}

func podLimit(pod *v1.Pod, name v1.ResourceName) resource.Quantity {
	if pod.Spec.Resources == nil {
		return resource.Quantity{}
	}
	return pod.Spec.Resources.Limits[name]
}
