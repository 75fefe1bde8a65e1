package scheduler

// check looks at one node for one pod: nothing to accept it, else why not, in the
// words that users see after a count of nodes ("Insufficient cpu").
type check func(n *nodeInfo) []string

// filter is one reason why a pod may not run on a node.
type filter struct {
	name string
	// wakes are the events after which a refusal may no longer hold.
	wakes event
	// prepare looks at the pod and the whole state once; nil if the filter has
	// nothing against any node. The state's lock is held.
	prepare func(p *podInfo, s *state) check
}

// filters in the order in which they are asked: cheap and selective ones first.
// The first that refuses a node is the one that is named for it.
var filters = []filter{
	{name: "NodeUnschedulable", wakes: nodeAdded | nodeTaints, prepare: unschedulableFilter},
	{name: "NodeName", wakes: nodeAdded, prepare: nodeNameFilter},
	{name: "TaintToleration", wakes: nodeAdded | nodeTaints, prepare: taintFilter},
	{name: "NodeAffinity", wakes: nodeAdded | nodeLabels, prepare: nodeAffinityFilter},
	{name: "VolumeRestrictions", wakes: podGone | volumeChanged, prepare: restrictionsFilter},
	{name: "NodePorts", wakes: nodeAdded | podGone, prepare: portFilter},
	{name: "NodeResourcesFit", wakes: nodeAdded | nodeResources | podGone | podResources, prepare: fitFilter},
	{name: "VolumeZone", wakes: nodeAdded | nodeLabels | volumeChanged, prepare: zoneFilter},
	{name: "VolumeBinding", wakes: nodeAdded | nodeLabels | nodeResources | volumeChanged, prepare: volumeFilter},
	{name: "PodTopologySpread", wakes: nodeAdded | nodeLabels | nodeTaints | podAdded | podGone | podLabels, prepare: spreadFilter},
	{name: "InterPodAffinity", wakes: nodeAdded | nodeLabels | podAdded | podGone | podLabels | namespaceLabels, prepare: podAffinityFilter},
}

// event is a set of kinds of change.
type event uint32

const (
	nodeAdded event = 1 << iota
	nodeTaints
	nodeLabels
	nodeResources
	podAdded
	podGone
	podLabels
	podResources
	namespaceLabels
	volumeChanged // claims, volumes and classes

	lastEvent = volumeChanged
)
