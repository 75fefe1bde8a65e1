package scheduler

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelper "k8s.io/component-helpers/resource"
)

// amount is a set of resources in the units that are compared: cpu in
// thousandths, the rest in bytes or pieces.
type amount struct {
	cpu, memory, storage int64
	other                map[corev1.ResourceName]int64
}

func amountOf(list corev1.ResourceList) amount {
	var a amount
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			a.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.storage = q.Value()
		case corev1.ResourcePods:
		default:
			if a.other == nil {
				a.other = map[corev1.ResourceName]int64{}
			}
			a.other[name] = q.Value()
		}
	}
	return a
}

// add adds b, sign times, in place.
func (a *amount) add(b amount, sign int64) {
	a.cpu += sign * b.cpu
	a.memory += sign * b.memory
	a.storage += sign * b.storage
	for name, n := range b.other {
		if a.other == nil {
			a.other = map[corev1.ResourceName]int64{}
		}
		a.other[name] += sign * n
	}
}

func (a amount) equal(b amount) bool {
	return a.cpu == b.cpu && a.memory == b.memory && a.storage == b.storage && maps.Equal(a.other, b.other)
}

// hostPort is a port of the node that a pod occupies.
type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

// anyIP stands for all addresses of a node.
const anyIP = "0.0.0.0"

// podInfo is a pod with what decisions need of it worked out once.
type podInfo struct {
	pod      *corev1.Pod
	requests amount
	// typical is requests with a guess in place of what is not asked for, so
	// that pods without requests spread too.
	typicalCPU, typicalMemory int64
	ports                     []hostPort
	owner                     types.UID // of the controller; "" without one
	claimKeys                 []string  // namespace/name of its claims

	claims []claimState // worked out for each decision
	plan   []claimPlan  // what was decided for those without a volume

	affinity, antiAffinity                   []affinityTerm // required
	preferredAffinity, preferredAntiAffinity []weightedTerm
	spread                                   []spreadConstraint
}

// guess is what a container is taken to need if it does not say.
var guess = corev1.ResourceList{
	corev1.ResourceCPU:    resource.MustParse("100m"),
	corev1.ResourceMemory: resource.MustParse("200Mi"),
}

// newPodInfo works out a pod. An error means that the pod cannot be scheduled as
// it is; the rest is still usable for a pod that already runs.
func newPodInfo(pod *corev1.Pod) (*podInfo, error) {
	// While a change of resources is under way, the larger ones count: those asked
	// for, granted and in force.
	o := resourcehelper.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	p := &podInfo{pod: pod, requests: amountOf(resourcehelper.PodRequests(pod, o))}
	o.NonMissingContainerRequests = guess
	typical := resourcehelper.PodRequests(pod, o)
	p.typicalCPU = typical.Cpu().MilliValue()
	p.typicalMemory = typical.Memory().Value()
	p.ports = hostPorts(pod)
	for _, name := range claimNames(pod) {
		p.claimKeys = append(p.claimKeys, claimKey(pod.Namespace, name))
	}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		p.owner = ref.UID
	}
	err := p.parseAffinity()
	if spreadErr := p.parseSpread(); err == nil {
		err = spreadErr
	}
	return p, err
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var out []hostPort
	collect := func(containers []corev1.Container, sidecarsOnly bool) {
		for i := range containers {
			c := &containers[i]
			if sidecarsOnly && (c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways) {
				continue
			}
			for _, port := range c.Ports {
				if port.HostPort <= 0 {
					continue
				}
				h := hostPort{ip: port.HostIP, protocol: port.Protocol, port: port.HostPort}
				if h.ip == "" {
					h.ip = anyIP
				}
				if h.protocol == "" {
					h.protocol = corev1.ProtocolTCP
				}
				out = append(out, h)
			}
		}
	}
	collect(pod.Spec.Containers, false)
	collect(pod.Spec.InitContainers, true)
	return out
}

// affinityTerm selects other pods, and says what counts as near.
type affinityTerm struct {
	namespaces        sets.Set[string]
	namespaceSelector labels.Selector
	selector          labels.Selector
	topologyKey       string
}

type weightedTerm struct {
	affinityTerm
	weight int64
}

// matches reports whether the term selects pod. namespaceLabels gives the labels
// of a namespace.
func (t *affinityTerm) matches(pod *corev1.Pod, namespaceLabels func(string) labels.Set) bool {
	if !t.namespaces.Has(pod.Namespace) &&
		(t.namespaceSelector == nil || !t.namespaceSelector.Matches(namespaceLabels(pod.Namespace))) {
		return false
	}
	return t.selector.Matches(labels.Set(pod.Labels))
}

func (p *podInfo) parseAffinity() error {
	a := p.pod.Spec.Affinity
	if a == nil {
		return nil
	}
	var err error
	required := func(terms []corev1.PodAffinityTerm, field string) (out []affinityTerm) {
		for i := range terms {
			t, e := p.term(&terms[i])
			if e != nil {
				err = fmt.Errorf("spec.affinity.%s.requiredDuringSchedulingIgnoredDuringExecution[%d]: %w", field, i, e)
				continue
			}
			out = append(out, t)
		}
		return out
	}
	preferred := func(terms []corev1.WeightedPodAffinityTerm, field string) (out []weightedTerm) {
		for i := range terms {
			t, e := p.term(&terms[i].PodAffinityTerm)
			if e != nil {
				err = fmt.Errorf("spec.affinity.%s.preferredDuringSchedulingIgnoredDuringExecution[%d]: %w", field, i, e)
				continue
			}
			out = append(out, weightedTerm{t, int64(terms[i].Weight)})
		}
		return out
	}
	if a.PodAffinity != nil {
		p.affinity = required(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, "podAffinity")
		p.preferredAffinity = preferred(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, "podAffinity")
	}
	if a.PodAntiAffinity != nil {
		p.antiAffinity = required(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, "podAntiAffinity")
		p.preferredAntiAffinity = preferred(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, "podAntiAffinity")
	}
	return err
}

func (p *podInfo) term(t *corev1.PodAffinityTerm) (affinityTerm, error) {
	selector, err := metav1.LabelSelectorAsSelector(t.LabelSelector)
	if err != nil {
		return affinityTerm{}, fmt.Errorf("labelSelector: %w", err)
	}
	if selector, err = withKeys(selector, p.pod.Labels, t.MatchLabelKeys, selection.In); err != nil {
		return affinityTerm{}, fmt.Errorf("matchLabelKeys: %w", err)
	}
	if selector, err = withKeys(selector, p.pod.Labels, t.MismatchLabelKeys, selection.NotIn); err != nil {
		return affinityTerm{}, fmt.Errorf("mismatchLabelKeys: %w", err)
	}
	out := affinityTerm{selector: selector, topologyKey: t.TopologyKey, namespaces: sets.New(t.Namespaces...)}
	if t.NamespaceSelector != nil {
		if out.namespaceSelector, err = metav1.LabelSelectorAsSelector(t.NamespaceSelector); err != nil {
			return affinityTerm{}, fmt.Errorf("namespaceSelector: %w", err)
		}
	} else if len(t.Namespaces) == 0 {
		out.namespaces.Insert(p.pod.Namespace)
	}
	return out, nil
}

// withKeys narrows selector to pods that share (or, with NotIn, do not share) the
// values of keys with own.
func withKeys(selector labels.Selector, own map[string]string, keys []string, op selection.Operator) (labels.Selector, error) {
	for _, key := range keys {
		value, ok := own[key]
		if !ok {
			continue
		}
		r, err := labels.NewRequirement(key, op, []string{value})
		if err != nil {
			return nil, err
		}
		selector = selector.Add(*r)
	}
	return selector, nil
}

// spreadConstraint is a topology spread constraint.
type spreadConstraint struct {
	selector    labels.Selector
	topologyKey string
	maxSkew     int64
	minDomains  int64
	hard        bool // DoNotSchedule
	honorNode   bool // nodes outside the pod's node affinity do not count
	honorTaints bool // nor those whose taints it does not tolerate
	matchesSelf bool
	namespace   string
}

func (p *podInfo) parseSpread() error {
	for i, c := range p.pod.Spec.TopologySpreadConstraints {
		selector, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
		if err == nil {
			selector, err = withKeys(selector, p.pod.Labels, c.MatchLabelKeys, selection.In)
		}
		if err != nil {
			return fmt.Errorf("spec.topologySpreadConstraints[%d]: %w", i, err)
		}
		s := spreadConstraint{
			selector: selector, topologyKey: c.TopologyKey, maxSkew: int64(c.MaxSkew), minDomains: 1,
			hard:        c.WhenUnsatisfiable != corev1.ScheduleAnyway,
			honorNode:   c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
			honorTaints: c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
			matchesSelf: selector.Matches(labels.Set(p.pod.Labels)),
			namespace:   p.pod.Namespace,
		}
		if c.MinDomains != nil {
			s.minDomains = int64(*c.MinDomains)
		}
		p.spread = append(p.spread, s)
	}
	return nil
}

// counts reports whether the constraint counts a pod.
func (s *spreadConstraint) counts(pod *corev1.Pod) bool {
	return pod.Namespace == s.namespace && pod.DeletionTimestamp == nil && s.selector.Matches(labels.Set(pod.Labels))
}
