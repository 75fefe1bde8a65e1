package core

//lint:file-ignore SA1019 Endpoints are deprecated, and still served

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func TestColumns(t *testing.T) {
	f := newFixture(t)
	hourAgo := metav1.NewTime(time.Now().Add(-time.Hour))
	for _, c := range []struct {
		resource string
		obj      runtime.Object
		columns  string
		cells    string
	}{
		{"services", service("x", clusterIP("10.43.0.5"), nodePort, port(30000), func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "TCP" }),
			"Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector", "x|NodePort|10.43.0.5|<none>|80:30000/TCP|60m|app=x"},
		{"services", service("x", loadBalancer), "", "x|LoadBalancer|<none>|<pending>|80/|60m|app=x"},
		{"services", service("x", loadBalancer, func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"1.1.1.1"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "9.9.9.9"}, {Hostname: "h"}}
		}), "", "x|LoadBalancer|<none>|1.1.1.1,9.9.9.9,h|80/|60m|app=x"},
		{"services", service("x", headless), "", "x||None|<unknown>|80/|60m|app=x"},
		{"services", service("x", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalName, s.Spec.Ports, s.Spec.Selector = "ExternalName", "a.b", nil, nil
		}), "", "x|ExternalName|<none>|a.b|<none>|60m|<none>"},
		{"nodes", named(func(n *corev1.Node) {
			n.Labels = map[string]string{"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}
			n.Spec.Unschedulable = true
			n.Status.Conditions = []corev1.NodeCondition{{Type: "Ready", Status: "True"}}
			n.Status.Addresses = []corev1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}, {Type: "ExternalIP", Address: "8.8.8.8"}}
			n.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: "v1.37.2", OSImage: "Debian", KernelVersion: "6.1", ContainerRuntimeVersion: "skiff://1"}
		}), "Name|Status|Roles|Age|Version|Internal-IP|External-IP|OS-Image|Kernel-Version|Container-Runtime",
			"x|Ready,SchedulingDisabled|control-plane,worker|60m|v1.37.2|10.0.0.1|8.8.8.8|Debian|6.1|skiff://1"},
		{"nodes", named(func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: "Ready", Status: "Unknown"}}
		}), "", "x|NotReady|<none>|60m||<none>|<none>|<unknown>|<unknown>|<unknown>"},
		{"nodes", named[corev1.Node](), "", "x|Unknown|<none>|60m||<none>|<none>|<unknown>|<unknown>|<unknown>"},
		{"endpoints", subsets(corev1.EndpointSubset{
			Addresses: []corev1.EndpointAddress{{IP: "10.0.0.1"}, {IP: "10.0.0.2"}}, Ports: []corev1.EndpointPort{{Port: 80}, {Port: 81}}}),
			"Name|Endpoints|Age", "x|10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...|60m"},
		{"endpoints", subsets(), "", "x|<none>|60m"},
		{"configmaps", named(func(c *corev1.ConfigMap) {
			c.Data, c.BinaryData = map[string]string{"a": ""}, map[string][]byte{"b": nil}
		}), "Name|Data|Age", "x|2|60m"},
		{"secrets", typed("Opaque", "a"), "Name|Type|Data|Age", "x|Opaque|1|60m"},
		{"serviceaccounts", named[corev1.ServiceAccount](), "Name|Secrets|Age", "x|0|60m"},
		{"namespaces", named(func(n *corev1.Namespace) { n.Status.Phase = "Active" }), "Name|Status|Age", "x|Active|60m"},
		{"limitranges", named[corev1.LimitRange](), "Name|Created At", "x|" + hourAgo.UTC().Format(time.RFC3339)},
		{"resourcequotas", named(func(q *corev1.ResourceQuota) {
			q.Status.Hard, q.Status.Used = quantities("pods", "10", "limits.cpu", "2", "cpu", "1"), quantities("pods", "3")
		}), "Name|Request|Limit|Age", "x|cpu: 0/1, pods: 3/10|limits.cpu: 0/2|60m"},
		{"persistentvolumeclaims", claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName, c.Spec.StorageClassName = "v", ptr.To("fast")
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: "Bound", Capacity: quantities("storage", "2Gi"), AccessModes: c.Spec.AccessModes}
		}), "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode", "x|Bound|v|2Gi|RWO|fast|<unset>|60m|<unset>"},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef, v.Status.Phase = &corev1.ObjectReference{Namespace: "ns", Name: "c"}, "Bound"
			v.Spec.PersistentVolumeReclaimPolicy = "Delete"
		}), "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode",
			"x|1Gi|RWO|Delete|Bound|ns/c||<unset>||60m|<unset>"},
		{"events", named(func(e *corev1.Event) {
			e.Type, e.Reason, e.Message = "Normal", "Started", " started\n"
			e.InvolvedObject = corev1.ObjectReference{Kind: "Pod", Name: "p", FieldPath: "spec.containers{c}"}
			e.FirstTimestamp, e.LastTimestamp, e.Count = metav1.NewTime(time.Now().Add(-2*time.Hour)), hourAgo, 4
			e.Source = corev1.EventSource{Component: "node", Host: "n1"}
		}), "Last Seen|Type|Reason|Object|Subobject|Source|Message|First Seen|Count|Name", "60m|Normal|Started|pod/p|spec.containers{c}|node, n1|started|120m|4|x"},
		{"events", named(func(e *corev1.Event) {
			e.InvolvedObject, e.EventTime, e.ReportingController = corev1.ObjectReference{Kind: "Node"}, metav1.NewMicroTime(hourAgo.Time), "c"
		}), "", "60m|||node||c||60m|1|x"},
	} {
		c.obj.(metav1.Object).SetCreationTimestamp(hourAgo)
		columns, cells := registrytest.Cells(t, f.storage[c.resource], c.obj)
		if got := strings.Join(columns, "|"); c.columns != "" && got != c.columns {
			t.Errorf("columns of %s:\n got %s\nwant %s", c.resource, got, c.columns)
		}
		var got []string
		for _, v := range cells {
			got = append(got, fmt.Sprint(v))
		}
		if s := strings.Join(got, "|"); s != c.cells {
			t.Errorf("row of %s:\n got %s\nwant %s", c.resource, s, c.cells)
		}
	}
}

func TestDefaults(t *testing.T) {
	f := newFixture(t)
	s := service("x", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, loadBalancer)
	f.Scheme.Default(s)
	if p := s.Spec.Ports[0]; p.Protocol != "TCP" || p.TargetPort.IntValue() != 80 {
		t.Errorf("port %+v", p)
	}
	if *s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10800 || s.Spec.ExternalTrafficPolicy != "Cluster" ||
		*s.Spec.InternalTrafficPolicy != "Cluster" || !*s.Spec.AllocateLoadBalancerNodePorts {
		t.Errorf("load balancer %+v", s.Spec)
	}
	n := named(func(n *corev1.Node) { n.Status.Capacity = quantities("cpu", "2") })
	f.Scheme.Default(n)
	if q := n.Status.Allocatable["cpu"]; q.String() != "2" {
		t.Errorf("allocatable %v", n.Status.Allocatable)
	}
	l := limits(corev1.LimitRangeItem{Type: "Container", Max: quantities("cpu", "2"), Min: quantities("cpu", "1", "memory", "1Gi")})
	f.Scheme.Default(l)
	if got := fmt.Sprint(l.Spec.Limits[0].Default.Cpu(), l.Spec.Limits[0].DefaultRequest.Cpu(), l.Spec.Limits[0].DefaultRequest.Memory()); got != "2 2 1Gi" {
		t.Errorf("limit range defaults %s", got)
	}
	v := volume()
	f.Scheme.Default(v)
	if v.Spec.PersistentVolumeReclaimPolicy != "Retain" || *v.Spec.VolumeMode != "Filesystem" || v.Spec.HostPath.Type == nil {
		t.Errorf("volume %+v", v.Spec)
	}
	ep := subsets(corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Port: 1}}})
	f.Scheme.Default(ep)
	if ep.Subsets[0].Ports[0].Protocol != "TCP" {
		t.Errorf("endpoints %+v", ep.Subsets)
	}
}

// stringData is write-only: it is merged over data and never stored.
func TestSecretStringData(t *testing.T) {
	f := newFixture(t)
	s := named(func(s *secret) {
		s.Namespace = "default"
		s.Data, s.StringData = map[string][]byte{"a": []byte("old"), "b": []byte("b")}, map[string]string{"a": "new"}
	})
	out := must[*secret](t)(f.Create(f.ctx("secrets"), f.storage["secrets"], s))
	if out.StringData != nil || string(out.Data["a"]) != "new" || string(out.Data["b"]) != "b" || out.Type != corev1.SecretTypeOpaque {
		t.Errorf("stored %+v", out)
	}
	for sel, want := range map[string]bool{"type=Opaque": true, "type=kubernetes.io/tls": false} {
		_, set, err := secretAttrs(out)
		if err != nil {
			t.Fatal(err)
		}
		if got := fields.ParseSelectorOrDie(sel).Matches(set); got != want {
			t.Errorf("%s matches: %t", sel, got)
		}
	}
}

func secretAttrs(s *secret) (map[string]string, fields.Set, error) {
	set := secretKind.Fields(s)
	return s.Labels, set, nil
}

func TestNamespaceLifecycle(t *testing.T) {
	f := newFixture(t)
	ctx := registrytest.Context("", gvr("namespaces"))
	s := f.storage["namespaces"]
	n := must[*corev1.Namespace](t)(f.Create(ctx, s, named(func(n *corev1.Namespace) { n.Name = "team" })))
	if n.Status.Phase != corev1.NamespaceActive || !slices.Equal(n.Spec.Finalizers, []corev1.FinalizerName{"kubernetes"}) ||
		n.Labels["kubernetes.io/metadata.name"] != "team" || n.Generation != 0 {
		t.Fatalf("created %+v", n)
	}
	// An update changes neither the finalizers nor the label.
	change := n.DeepCopy()
	change.Spec.Finalizers, change.Labels = nil, nil
	n = must[*corev1.Namespace](t)(f.Update(ctx, s, change))
	if len(n.Spec.Finalizers) != 1 || n.Labels["kubernetes.io/metadata.name"] != "team" {
		t.Errorf("updated %+v", n)
	}
	del := func(o *metav1.DeleteOptions) (*corev1.Namespace, bool, error) {
		obj, gone, err := s.(rest.GracefulDeleter).Delete(ctx, "team", rest.ValidateAllObjectFunc, o)
		ns, _ := obj.(*corev1.Namespace)
		return ns, gone, err
	}
	if _, _, err := del(metav1.NewPreconditionDeleteOptions("other")); !apierrors.IsConflict(err) {
		t.Errorf("delete of another UID: %v", err)
	}
	if out, _, err := del(&metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || out.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("dry run: %v %v", out, err)
	}
	if n = must[*corev1.Namespace](t)(s.(rest.Getter).Get(ctx, "team", &metav1.GetOptions{})); n.DeletionTimestamp != nil {
		t.Error("dry run deleted")
	}
	for range 2 { // the second changes nothing
		out, gone, err := del(nil)
		if err != nil || gone || out.Status.Phase != corev1.NamespaceTerminating || out.DeletionTimestamp == nil {
			t.Fatalf("delete: %+v %t %v", out, gone, err)
		}
	}
	finalized := must[*corev1.Namespace](t)(s.(rest.Getter).Get(ctx, "team", &metav1.GetOptions{})).DeepCopy()
	finalized.Spec.Finalizers = nil
	if _, err := f.Update(ctx, f.storage["namespaces/finalize"], finalized); err != nil {
		t.Fatal(err)
	}
	if _, err := s.(rest.Getter).Get(ctx, "team", &metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its last finalizer: %v", err)
	}
	if _, ok := s.(rest.CollectionDeleter); ok {
		t.Error("namespaces can be deleted as a collection")
	}
}

// A node registers with its status; other kinds start without one.
func TestNodeStatusOnCreate(t *testing.T) {
	f := newFixture(t)
	ctx := registrytest.Context("", gvr("nodes"))
	n := must[*corev1.Node](t)(f.Create(ctx, f.storage["nodes"], named(func(n *corev1.Node) {
		n.Spec.PodCIDRs = []string{"10.42.0.0/24"}
		n.Status.Capacity = quantities("cpu", "2")
	})))
	if n.Spec.PodCIDR != "10.42.0.0/24" || n.Status.Capacity.Cpu().String() != "2" || n.Generation != 0 {
		t.Errorf("registered %+v", n)
	}
	bad := n.DeepCopy()
	bad.Status.Capacity = quantities("example.com/gpu", "500m")
	_, err := f.Update(ctx, f.storage["nodes/status"], bad)
	refusal(t, err, `status.capacity[example.com/gpu]: Invalid value: "500m": must be an integer`)
}

// Taints that evict have a time, also if the client knows nothing of it; one that
// stays keeps its time.
func TestTimeOfTaints(t *testing.T) {
	now, before := metav1.NewTime(time.Unix(2000, 0)), metav1.NewTime(time.Unix(1000, 0))
	taint := func(key, value string, effect corev1.TaintEffect, added *metav1.Time) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: effect, TimeAdded: added}
	}
	old := taints(taint("a", "", "NoExecute", &before), taint("b", "1", "NoExecute", &before), taint("old", "", "NoExecute", nil))
	for _, c := range []struct {
		name  string
		old   *corev1.Node
		taint corev1.Taint
		want  *metav1.Time
	}{
		{"of a new node", nil, taint("a", "", "NoExecute", nil), &now},
		{"new", old, taint("new", "", "NoExecute", nil), &now},
		{"kept", old, taint("a", "", "NoExecute", nil), &before},
		{"with another value", old, taint("b", "2", "NoExecute", nil), &now},
		{"without a time since ever", old, taint("old", "", "NoExecute", nil), nil},
		{"with a time", old, taint("a", "", "NoExecute", &now), &now},
		{"that evicts nothing", old, taint("new", "", "NoSchedule", nil), nil},
	} {
		n := taints(c.taint)
		stampTaints(n, c.old, now)
		if got := n.Spec.Taints[0].TimeAdded; !got.Equal(c.want) {
			t.Errorf("a taint %s holds since %v, want %v", c.name, got, c.want)
		}
	}

	f := newFixture(t)
	ctx := registrytest.Context("", gvr("nodes"))
	n := must[*corev1.Node](t)(f.Create(ctx, f.storage["nodes"], taints(taint("a", "", "NoExecute", nil))))
	n.Spec.Taints = append(n.Spec.Taints, taint("b", "", "NoExecute", nil))
	n = must[*corev1.Node](t)(f.Update(ctx, f.storage["nodes"], n))
	for _, have := range n.Spec.Taints {
		if have.TimeAdded == nil || time.Since(have.TimeAdded.Time) > time.Minute {
			t.Errorf("taint %s holds since %v", have.Key, have.TimeAdded)
		}
	}
}

func TestEndpointsRepack(t *testing.T) {
	a := func(ip string) corev1.EndpointAddress { return corev1.EndpointAddress{IP: ip} }
	http, dns := corev1.EndpointPort{Name: "http", Port: 80}, corev1.EndpointPort{Name: "dns", Port: 53}
	got := repack([]corev1.EndpointSubset{
		{Addresses: []corev1.EndpointAddress{a("10.0.0.2"), a("10.0.0.1")}, Ports: []corev1.EndpointPort{http}},
		{Addresses: []corev1.EndpointAddress{a("10.0.0.1")}, NotReadyAddresses: []corev1.EndpointAddress{a("10.0.0.2")}, Ports: []corev1.EndpointPort{http}},
		{Addresses: []corev1.EndpointAddress{a("10.0.0.1")}, NotReadyAddresses: []corev1.EndpointAddress{a("10.0.0.2")}, Ports: []corev1.EndpointPort{dns}},
	})
	if len(got) != 1 || len(got[0].Ports) != 2 || got[0].Ports[0].Name != "dns" ||
		len(got[0].Addresses) != 1 || got[0].Addresses[0].IP != "10.0.0.1" || len(got[0].NotReadyAddresses) != 1 {
		t.Errorf("repacked to %+v", got)
	}
	if again := repack(got); fmt.Sprint(again) != fmt.Sprint(got) {
		t.Errorf("not stable: %+v", again)
	}
	if none := repack([]corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{a("10.0.0.1")}}}); len(none) != 1 || none[0].Ports != nil {
		t.Errorf("without ports: %+v", none)
	}
}
