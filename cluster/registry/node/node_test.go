package node

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func TestRuntimeClasses(t *testing.T) {
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := registrytest.Context("", nodev1.SchemeGroupVersion.WithResource("runtimeclasses"))
	class := func(change func(*nodev1.RuntimeClass)) *nodev1.RuntimeClass {
		c := &nodev1.RuntimeClass{Handler: "runc"}
		c.Name = "x"
		change(c)
		return c
	}
	twice := corev1.Toleration{Key: "a", Operator: corev1.TolerationOpExists}
	for want, change := range map[string]func(*nodev1.RuntimeClass){
		"handler: Required value":                                     func(c *nodev1.RuntimeClass) { c.Handler = "" },
		`handler: Invalid value: "Run_C": a lowercase RFC 1123 label`: func(c *nodev1.RuntimeClass) { c.Handler = "Run_C" },
		`overhead.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0`: func(c *nodev1.RuntimeClass) {
			c.Overhead = &nodev1.Overhead{PodFixed: corev1.ResourceList{"cpu": resource.MustParse("-1")}}
		},
		"overhead.limits[apples]: Invalid value": func(c *nodev1.RuntimeClass) {
			c.Overhead = &nodev1.Overhead{PodFixed: corev1.ResourceList{"apples": resource.MustParse("1")}}
		},
		"scheduling.nodeSelector: Invalid value": func(c *nodev1.RuntimeClass) {
			c.Scheduling = &nodev1.Scheduling{NodeSelector: map[string]string{"a b": ""}}
		},
		"scheduling.tolerations[1]: Duplicate value": func(c *nodev1.RuntimeClass) {
			c.Scheduling = &nodev1.Scheduling{Tolerations: []corev1.Toleration{twice, twice}}
		},
		"scheduling.tolerations[0].operator: Unsupported value": func(c *nodev1.RuntimeClass) {
			c.Scheduling = &nodev1.Scheduling{Tolerations: []corev1.Toleration{{Key: "a", Operator: "Is"}}}
		},
		"scheduling.tolerations[0].effect: Invalid value": func(c *nodev1.RuntimeClass) {
			c.Scheduling = &nodev1.Scheduling{Tolerations: []corev1.Toleration{{Key: "a", Operator: "Exists", TolerationSeconds: ptr.To[int64](3)}}}
		},
	} {
		if _, err := env.Create(ctx, m["runtimeclasses"], class(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	obj, err := env.Create(ctx, m["runtimeclasses"], class(func(*nodev1.RuntimeClass) {}))
	if err != nil {
		t.Fatal(err)
	}
	columns, cells := registrytest.Cells(t, m["runtimeclasses"], obj)
	if got := strings.Join(columns, "|"); got != "Name|Handler|Age" || cells[1] != "runc" {
		t.Errorf("columns %s, cells %v", got, cells)
	}
	c := obj.(*nodev1.RuntimeClass).DeepCopy()
	c.Handler = "kata"
	if _, err := env.Update(ctx, m["runtimeclasses"], c); err == nil || !strings.Contains(err.Error(), "handler: Invalid value: \"kata\": field is immutable") {
		t.Error(err)
	}
	c.Handler, c.Overhead = "runc", &nodev1.Overhead{PodFixed: corev1.ResourceList{"memory": resource.MustParse("1Mi")}}
	if _, err := env.Update(ctx, m["runtimeclasses"], c); err != nil {
		t.Error(err)
	}
}
