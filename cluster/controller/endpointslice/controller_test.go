package endpointslice

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "svc", Labels: map[string]string{"team": "a"}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.5", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func pod(i int, change ...func(*corev1.Pod)) *corev1.Pod {
	ip := fmt.Sprintf("10.42.%d.%d", 100+i/100, 100+i%100) // sorts as the names do
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%03d", i), UID: types.UID(fmt.Sprint("pod", i)), Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func notReady(p *corev1.Pod)    { p.Status.Conditions[0].Status = corev1.ConditionFalse }
func terminating(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
func ports(name string, n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: name, ContainerPort: n, Protocol: corev1.ProtocolTCP}}
	}
}

// show writes groups as "port,port:name[rst],..." with the conditions that hold.
func show(groups []group) string {
	var out []string
	for _, g := range groups {
		var ports, endpoints []string
		for _, p := range g.ports {
			ports = append(ports, fmt.Sprintf("%s=%d", deref(p.Name), deref(p.Port)))
		}
		for _, e := range g.endpoints {
			flags := ""
			for f, b := range map[string]*bool{"r": e.Conditions.Ready, "s": e.Conditions.Serving, "t": e.Conditions.Terminating} {
				if deref(b) {
					flags += f
				}
			}
			r := strings.Split(flags, "")
			slices.Sort(r)
			endpoints = append(endpoints, e.TargetRef.Name+"["+strings.Join(r, "")+"]")
		}
		out = append(out, strings.Join(ports, ",")+":"+strings.Join(endpoints, ","))
	}
	return strings.Join(out, " ")
}

func TestGather(t *testing.T) {
	named := func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") }
	for _, tc := range []struct {
		name string
		svc  *corev1.Service
		pods []*corev1.Pod
		want string
	}{
		{"states", service(), []*corev1.Pod{pod(0), pod(1, notReady), pod(2, terminating), pod(3, terminating, notReady)},
			"http=8080:web-000[rs],web-001[],web-002[st],web-003[t]"},
		{"no address, finished", service(), []*corev1.Pod{
			pod(0, func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }), pod(1, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, ""},
		{"not ready but published", service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }),
			[]*corev1.Pod{pod(0, notReady), pod(1, terminating)}, "http=8080:web-000[r],web-001[rst]"},
		{"named ports differ by pod", service(named), []*corev1.Pod{pod(0, ports("web", 1)), pod(1, ports("web", 2)), pod(2, ports("other", 3))},
			":web-002[rs] http=1:web-000[rs] http=2:web-001[rs]"},
		{"target port not given", service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.IntOrString{} }), []*corev1.Pod{pod(0)}, "http=80:web-000[rs]"},
		{"headless without ports", service(func(s *corev1.Service) { s.Spec.Ports, s.Spec.ClusterIP = nil, "None" }), []*corev1.Pod{pod(0)}, ":web-000[rs]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(gather(tc.svc, tc.pods, func(string) string { return "" })); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestGatherDetails(t *testing.T) {
	p := pod(0, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "db-0", "web" })
	e := gather(service(), []*corev1.Pod{p}, func(n string) string { return "zone-of-" + n })[0].endpoints[0]
	if deref(e.Hostname) != "db-0" || deref(e.NodeName) != "n" || deref(e.Zone) != "zone-of-n" {
		t.Errorf("hostname %q, node %q, zone %q", deref(e.Hostname), deref(e.NodeName), deref(e.Zone))
	}
}

// applyTo plays the API: it returns the slices after a plan.
func applyTo(existing []*discoveryv1.EndpointSlice, p plan, serial *int) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range existing {
		if slices.Contains(p.remove, s) {
			continue
		}
		for _, u := range p.update {
			if u.Name == s.Name {
				s = u
			}
		}
		out = append(out, s)
	}
	for _, s := range p.create {
		*serial++
		s.Name = fmt.Sprintf("s%03d", *serial)
		out = append(out, s)
	}
	return out
}

func TestPlanFillsAndShrinks(t *testing.T) {
	svc := service()
	template := sliceTemplate("default", "web", labelsOf(svc), managedBySlices, *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service")))
	ipv4 := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	var existing []*discoveryv1.EndpointSlice
	serial := 0
	for _, tc := range []struct {
		from, to                int // pods
		create, update, removed int
		slices                  int
	}{
		{0, 0, 1, 0, 0, 1},     // a placeholder
		{0, 1, 1, 0, 1, 1},     // ports are known now
		{0, 1, 0, 0, 0, 1},     // nothing to do
		{0, 250, 2, 1, 0, 3},   // the first is filled up
		{5, 250, 0, 1, 0, 3},   // five leave one slice
		{5, 253, 0, 1, 0, 3},   // three come: into one with room
		{240, 253, 0, 2, 1, 2}, // nothing moves for the sake of order
		{0, 0, 1, 0, 2, 1},
	} {
		var pods []*corev1.Pod
		for i := tc.from; i < tc.to; i++ {
			pods = append(pods, pod(i))
		}
		p := decide(template, gather(svc, pods, func(string) string { return "" }), existing, ipv4)
		existing = applyTo(existing, p, &serial)
		if len(p.create) != tc.create || len(p.update) != tc.update || len(p.remove) != tc.removed || len(existing) != tc.slices {
			t.Errorf("pods %d-%d: create %d, update %d, remove %d, slices %d; want %d %d %d %d", tc.from, tc.to,
				len(p.create), len(p.update), len(p.remove), len(existing), tc.create, tc.update, tc.removed, tc.slices)
		}
		seen := map[string]bool{}
		for _, s := range existing {
			if len(s.Endpoints) > maxEndpoints {
				t.Errorf("slice %s has %d endpoints", s.Name, len(s.Endpoints))
			}
			for _, e := range s.Endpoints {
				if seen[e.TargetRef.Name] {
					t.Errorf("%s is in two slices", e.TargetRef.Name)
				}
				seen[e.TargetRef.Name] = true
			}
		}
		if len(seen) != tc.to-tc.from {
			t.Errorf("pods %d-%d: %d endpoints", tc.from, tc.to, len(seen))
		}
	}
}

func TestEndpointsFor(t *testing.T) {
	svc := service()
	e := endpointsFor(svc, []*corev1.Pod{pod(0), pod(1, notReady), pod(2, terminating)})
	if len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 1 || len(e.Subsets[0].NotReadyAddresses) != 1 || e.Subsets[0].Ports[0].Port != 8080 {
		t.Errorf("subsets %+v", e.Subsets)
	}
	var many []*corev1.Pod
	for i := range 1100 {
		many = append(many, pod(i))
	}
	e = endpointsFor(svc, many)
	if n := len(e.Subsets[0].Addresses); n != 1000 || e.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("%d addresses, annotations %v", n, e.Annotations)
	}
}

func TestController(t *testing.T) {
	ctx := context.Background()
	byHand := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}, Ports: []corev1.EndpointPort{{Port: 5432}}}}}
	c := controllertest.New(t, service(), pod(0), pod(1, notReady),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z1"}}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.6"}},
		byHand)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	list := func(svc string) []discoveryv1.EndpointSlice {
		l, err := c.Client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + svc})
		if err != nil {
			t.Fatal(err)
		}
		return l.Items
	}
	ready := func() (names []string) {
		for _, s := range list("web") {
			for _, e := range s.Endpoints {
				if deref(e.Conditions.Ready) {
					names = append(names, e.TargetRef.Name)
				}
			}
		}
		return names
	}
	want := func(names ...string) func() string {
		return func() string {
			if got := ready(); !slices.Equal(got, names) {
				return fmt.Sprintf("ready %v, want %v", got, names)
			}
			return ""
		}
	}
	controllertest.Eventually(t, want("web-000"))
	s := list("web")[0]
	if s.Labels["team"] != "a" || s.Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || s.OwnerReferences[0].Name != "web" || deref(s.Endpoints[0].Zone) != "z1" {
		t.Errorf("slice %+v", s)
	}
	// The second pod becomes ready, the first leaves.
	if _, err := c.Client.CoreV1().Pods("default").Update(ctx, pod(1), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, want("web-000", "web-001"))
	if err := c.Client.CoreV1().Pods("default").Delete(ctx, "web-000", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, want("web-001"))
	controllertest.Eventually(t, func() string {
		e, err := c.Client.CoreV1().Endpoints("default").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if len(e.Subsets) != 1 || len(e.Subsets[0].Addresses) != 1 || e.Subsets[0].Addresses[0].TargetRef.Name != "web-001" {
			return fmt.Sprintf("endpoints %+v", e.Subsets)
		}
		return ""
	})

	mirror := func() string {
		got := list("db")
		if len(got) != 1 || len(got[0].Endpoints) != 1 || got[0].Endpoints[0].Addresses[0] != "192.0.2.1" ||
			got[0].Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" {
			return fmt.Sprintf("mirror %+v", got)
		}
		return ""
	}
	controllertest.Eventually(t, mirror)
	c.Settles(t, 300*time.Millisecond)
	if n := len(list("web")); n != 1 {
		t.Errorf("%d slices, want 1", n)
	}
	if err := c.Client.CoreV1().Endpoints("default").Delete(ctx, "db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if n := len(list("db")); n != 0 {
			return fmt.Sprintf("%d mirrored slices", n)
		}
		return ""
	})
	// The Endpoints of a deleted Service go.
	if err := c.Client.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, func() string {
		if _, err := c.Client.CoreV1().Endpoints("default").Get(ctx, "web", metav1.GetOptions{}); err == nil {
			return "endpoints still there"
		}
		return ""
	})
}

func TestTracker(t *testing.T) {
	tr := newTracker()
	now := time.Now()
	tr.now = func() time.Time { return now }
	slice := func(v string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{UID: "a", ResourceVersion: v}}
	}
	tr.wrote("k", slice("10"))
	if tr.seen("k", nil) || tr.seen("k", []*discoveryv1.EndpointSlice{slice("9")}) {
		t.Error("cache without the write counts as up to date")
	}
	if !tr.seen("k", []*discoveryv1.EndpointSlice{slice("11")}) {
		t.Error("newer version does not count")
	}
	tr.removed("k", slice("11"))
	if tr.seen("k", []*discoveryv1.EndpointSlice{slice("11")}) {
		t.Error("removed slice still cached counts as up to date")
	}
	now = now.Add(trackerPatience)
	if !tr.seen("k", []*discoveryv1.EndpointSlice{slice("11")}) {
		t.Error("a lost event holds up for ever")
	}
}
