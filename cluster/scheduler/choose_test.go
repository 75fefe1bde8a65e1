package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"),
			corev1.ResourceEphemeralStorage: resource.MustParse("10Gi"), corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"name": name}},
		Spec:       corev1.PodSpec{SchedulerName: DefaultName, Containers: []corev1.Container{{Name: "c"}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func label(k, v string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[k] = v } }
func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}
func cordon(n *corev1.Node) { n.Spec.Unschedulable = true }
func maxPods(n string) func(*corev1.Node) {
	return func(node *corev1.Node) { node.Status.Allocatable[corev1.ResourcePods] = resource.MustParse(n) }
}
func requests(kv ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		list := corev1.ResourceList{}
		for i := 0; i < len(kv); i += 2 {
			list[corev1.ResourceName(kv[i])] = resource.MustParse(kv[i+1])
		}
		p.Spec.Containers[0].Resources.Requests = list
	}
}
func on(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = name } }
func labelled(k, v string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{k: v} }
}
func port(n int32, ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: n, HostIP: ip, ContainerPort: n}}
	}
}
func ownedBy(uid string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(uid), Controller: &yes}}
	}
}

func selectorTerm(key, value, topology string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: topology, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}}
}
func near(key, value, topology string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{selectorTerm(key, value, topology)}}}
	}
}
func apart(key, value, topology string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{selectorTerm(key, value, topology)}}}
	}
}
func spread(topology string, skew int32, when corev1.UnsatisfiableConstraintAction) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: skew, TopologyKey: topology, WhenUnsatisfiable: when,
			LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}
	}
}

func stateOf(nodes []*corev1.Node, pods []*corev1.Pod) *state {
	s := newState(func(string) labels.Set { return nil })
	for _, n := range nodes {
		s.setNode(n)
	}
	for _, p := range pods {
		s.setPod(p)
	}
	return s
}

func TestChoose(t *testing.T) {
	affinity := func(a *corev1.Affinity) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Affinity = a } }
	for _, tc := range []struct {
		name  string
		nodes []*corev1.Node
		there []*corev1.Pod
		pod   *corev1.Pod
		want  string // node name, or the refusal
	}{
		{"no nodes", nil, nil, pod("p"), "no nodes available to schedule pods"},
		{"fits", []*corev1.Node{node("a")}, nil, pod("p"), "a"},
		{"cpu and memory", []*corev1.Node{node("a"), node("b")}, nil, pod("p", requests("cpu", "5", "memory", "9Gi")),
			"0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient memory."},
		{"room taken", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", on("a"), requests("cpu", "3"))},
			pod("p", requests("cpu", "2")), "b"},
		{"extended resource", []*corev1.Node{node("a")}, nil, pod("p", requests("example.com/gpu", "1")),
			"0/1 nodes are available: 1 Insufficient example.com/gpu."},
		{"too many pods", []*corev1.Node{node("a", maxPods("1"))}, []*corev1.Pod{pod("x", on("a"))}, pod("p"),
			"0/1 nodes are available: 1 Too many pods."},
		{"mixed refusals", []*corev1.Node{node("a"), node("b", taint("k", corev1.TaintEffectNoSchedule)), node("c", taint("k", corev1.TaintEffectNoExecute)), node("d", cordon)}, nil,
			pod("p", requests("cpu", "5")),
			"0/4 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s)."},
		{"tolerates everything", []*corev1.Node{node("a", cordon, taint("k", corev1.TaintEffectNoExecute))}, nil,
			pod("p", func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
			}), "a"},
		{"prefers no taint", []*corev1.Node{node("a", taint("k", corev1.TaintEffectPreferNoSchedule)), node("b")}, nil, pod("p"), "b"},
		{"node selector", []*corev1.Node{node("a"), node("b", label("disk", "ssd"))}, nil,
			pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), "b"},
		{"no such label", []*corev1.Node{node("a")}, nil,
			pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			"0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."},
		{"required affinity Gt", []*corev1.Node{node("a", label("n", "3")), node("b", label("n", "9"))}, nil,
			pod("p", affinity(&corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "n", Operator: corev1.NodeSelectorOpGt, Values: []string{"5"}}}}}}}})), "b"},
		{"pinned by name", []*corev1.Node{node("a"), node("b")}, nil, pod("p", affinity(pinned("b"))), "b"},
		{"pinned elsewhere", []*corev1.Node{node("a"), node("b", cordon)}, nil, pod("p", affinity(pinned("b"))),
			"0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable."},
		{"preferred affinity", []*corev1.Node{node("a"), node("b", label("disk", "ssd"))}, nil,
			pod("p", affinity(&corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
				Weight: 10, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpExists}}}}}}})), "b"},
		{"host port taken", []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", on("a"), port(80, ""))}, pod("p", port(80, "10.0.0.1")),
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		{"host port on other address", []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", on("a"), port(80, "10.0.0.2"))}, pod("p", port(80, "10.0.0.1")), "a"},
		{"spread by controller", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", on("a"), ownedBy("rs"))}, pod("p", ownedBy("rs")), "b"},
		{"least allocated", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", on("a"), requests("cpu", "2", "memory", "4Gi"))}, pod("p"), "b"},
		{"pod affinity", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", on("b"), labelled("app", "db"))},
			pod("p", near("app", "db", "kubernetes.io/hostname")), "b"},
		{"pod affinity unmet", []*corev1.Node{node("a")}, nil, pod("p", near("app", "db", "kubernetes.io/hostname")),
			"0/1 nodes are available: 1 node(s) didn't match pod affinity rules."},
		{"pod affinity to itself", []*corev1.Node{node("a")}, nil, pod("p", labelled("app", "db"), near("app", "db", "kubernetes.io/hostname")), "a"},
		{"pod anti-affinity", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("x", on("a"), labelled("app", "db"))},
			pod("p", apart("app", "db", "kubernetes.io/hostname")), "b"},
		{"pod anti-affinity unmet", []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", on("a"), labelled("app", "db"))},
			pod("p", apart("app", "db", "kubernetes.io/hostname")), "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."},
		{"unwelcome", []*corev1.Node{node("a")}, []*corev1.Pod{pod("x", on("a"), apart("app", "web", "kubernetes.io/hostname"))},
			pod("p", labelled("app", "web")), "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."},
		{"spread constraint", []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2"))},
			[]*corev1.Pod{pod("x", on("a"), labelled("app", "web"))},
			pod("p", labelled("app", "web"), spread("zone", 1, corev1.DoNotSchedule)), "b"},
		{"spread constraint unmet", []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2"), cordon)},
			[]*corev1.Pod{pod("x", on("a"), labelled("app", "web"))},
			pod("p", labelled("app", "web"), spread("zone", 1, corev1.DoNotSchedule)),
			"0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) were unschedulable."},
		{"spread constraint without key", []*corev1.Node{node("a")}, nil, pod("p", spread("zone", 1, corev1.DoNotSchedule)),
			"0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."},
		{"soft spread", []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2"))},
			[]*corev1.Pod{pod("x", on("a"), labelled("app", "web"))},
			pod("p", labelled("app", "web"), spread("zone", 1, corev1.ScheduleAnyway)), "b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := newPodInfo(tc.pod)
			if err != nil {
				t.Fatal(err)
			}
			var c chooser
			n, why := c.choose(p, stateOf(tc.nodes, tc.there))
			got := ""
			if n != nil {
				got = n.name
			} else {
				got = why.message()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func pinned(name string) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{name}}}}}}}}
}

func TestWantedNodes(t *testing.T) {
	for _, tc := range []struct{ total, want int }{{1, 1}, {100, 100}, {150, 100}, {1000, 420}, {5000, 500}, {20000, 1000}} {
		if got := wantedNodes(tc.total); got != tc.want {
			t.Errorf("wantedNodes(%d) = %d, want %d", tc.total, got, tc.want)
		}
	}
}

func TestStateForgetsWhatLeaves(t *testing.T) {
	s := stateOf([]*corev1.Node{node("a"), node("b"), node("c")}, nil)
	for i := range 9 {
		s.setPod(pod(fmt.Sprint(i), on(string("abc"[i%3])), requests("cpu", "100m"), port(int32(i+1), ""), ownedBy("rs"), apart("a", "b", "zone")))
	}
	s.removeNode("b")
	if len(s.nodes) != 2 {
		t.Fatalf("%d nodes, want 2", len(s.nodes))
	}
	for i := range 9 {
		s.removePod(types.UID(fmt.Sprint(i)))
	}
	for _, n := range s.nodes {
		if n.used.cpu != 0 || n.typicalMemory != 0 || len(n.pods)+len(n.ports)+len(n.perOwner) != 0 {
			t.Errorf("node %s keeps %+v", n.name, n)
		}
		if s.nodes[n.at] != n {
			t.Errorf("node %s is not at %d", n.name, n.at)
		}
	}
	if len(s.where)+len(s.withAffinity)+len(s.assumed) != 0 || len(s.byName) != 2 {
		t.Errorf("left over: %d pods, %d affinities, %d nodes", len(s.where), len(s.withAffinity), len(s.byName))
	}
}

func TestUnsupported(t *testing.T) {
	for _, tc := range []struct {
		change func(*corev1.Pod)
		want   string
	}{
		{func(*corev1.Pod) {}, ""},
		{func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "x"}} }, "spec.resourceClaims"},
		{func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "spec.os.name"},
		{func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }, ""},
		{func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{}, {VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}}}
		}, ""},
	} {
		if got := unsupported(pod("p", tc.change)); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
