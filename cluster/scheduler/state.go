package scheduler

import (
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// state is the picture of the cluster that decisions are made on: every node
// with the pods that run, or are assumed to run, on it. Informer events change
// it one object at a time; a decision holds the lock for a fraction of a
// millisecond.
type state struct {
	mu     sync.Mutex
	byName map[string]*nodeInfo
	nodes  []*nodeInfo // those with a Node object, in no order
	// where tells the node of each pod that counts.
	where map[types.UID]string
	// assumed holds pods whose binding is not yet seen in the API.
	assumed map[types.UID]bool
	// withAffinity holds the pods whose own terms concern pods that come later.
	withAffinity map[types.UID]*podInfo
	// claims counts the pods that use each claim.
	claims map[string]int
	// volumes is what claims get; it has a lock of its own.
	volumes *volumes
	// next is where the search for nodes goes on, so that all get their share
	// when only some are looked at.
	next int
	// namespaceLabels gives the labels of a namespace.
	namespaceLabels func(string) labels.Set
}

func newState(namespaceLabels func(string) labels.Set) *state {
	return &state{
		byName: map[string]*nodeInfo{}, where: map[types.UID]string{}, assumed: map[types.UID]bool{},
		withAffinity: map[types.UID]*podInfo{}, claims: map[string]int{}, namespaceLabels: namespaceLabels,
	}
}

func (s *state) setNode(node *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.info(node.Name)
	n.setNode(node)
	if n.at < 0 {
		n.at = len(s.nodes)
		s.nodes = append(s.nodes, n)
	}
}

func (s *state) removeNode(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.byName[name]
	if !ok || n.at < 0 {
		return
	}
	last := len(s.nodes) - 1
	s.nodes[n.at] = s.nodes[last]
	s.nodes[n.at].at = n.at
	s.nodes = s.nodes[:last]
	n.node, n.at = nil, -1
	s.dropIfEmpty(n)
}

// setPod records a pod that the API shows on a node, and tells what about it is
// new to those that wait for one.
func (s *state) setPod(pod *corev1.Pod) event {
	p, _ := newPodInfo(pod) // what cannot be parsed concerns later pods only
	s.mu.Lock()
	defer s.mu.Unlock()
	e := podAdded
	if on, known := s.where[pod.UID]; known && !s.assumed[pod.UID] {
		e = podEvent(s.byName[on].pods[pod.UID], p)
	}
	s.place(p, pod.Spec.NodeName)
	delete(s.assumed, pod.UID)
	return e
}

// podEvent tells what has changed about a pod that has a node.
func podEvent(old, cur *podInfo) event {
	var e event
	if !maps.Equal(old.pod.Labels, cur.pod.Labels) || (old.pod.DeletionTimestamp == nil) != (cur.pod.DeletionTimestamp == nil) {
		e |= podLabels
	}
	if !old.requests.equal(cur.requests) {
		e |= podResources
	}
	return e
}

// assume records a decision before the API shows it; the caller holds the lock.
// It is false, and records nothing, if a claim of the pod can no longer be had
// there: volumes change beside the lock.
func (s *state) assume(p *podInfo, n *nodeInfo) bool {
	if p.plan = nil; len(p.claims) > 0 {
		plan, why := s.planClaims(p, n)
		if len(why) > 0 {
			return false
		}
		p.plan = plan
		s.volumes.assume(plan)
	}
	s.place(p, n.name)
	s.assumed[p.pod.UID] = true
	return true
}

// node gives the object of a node, nil if there is none.
func (s *state) node(name string) *corev1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.byName[name]; ok {
		return n.node
	}
	return nil
}

// forget takes an assumption back. It does nothing if the API has shown the pod
// on a node in the meantime.
func (s *state) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.assumed[uid] {
		s.removeLocked(uid)
	}
}

// isAssumed reports whether a binding of the pod is under way.
func (s *state) isAssumed(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.assumed[uid]
}

// removePod forgets a pod that is gone or has finished; false if it did not count.
func (s *state) removePod(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeLocked(uid)
}

func (s *state) place(p *podInfo, node string) {
	s.removeLocked(p.pod.UID)
	s.info(node).add(p)
	s.where[p.pod.UID] = node
	for _, key := range p.claimKeys {
		s.claims[key]++
	}
	if len(p.antiAffinity)+len(p.affinity)+len(p.preferredAffinity)+len(p.preferredAntiAffinity) > 0 {
		s.withAffinity[p.pod.UID] = p
	}
}

func (s *state) removeLocked(uid types.UID) bool {
	name, ok := s.where[uid]
	if !ok {
		return false
	}
	delete(s.where, uid)
	delete(s.assumed, uid)
	delete(s.withAffinity, uid)
	n := s.byName[name]
	for _, key := range n.pods[uid].claimKeys {
		if s.claims[key]--; s.claims[key] == 0 {
			delete(s.claims, key)
		}
	}
	n.remove(uid)
	s.dropIfEmpty(n)
	return true
}

func (s *state) info(name string) *nodeInfo {
	n, ok := s.byName[name]
	if !ok {
		n = newNodeInfo(name)
		s.byName[name] = n
	}
	return n
}

func (s *state) dropIfEmpty(n *nodeInfo) {
	if n.node == nil && len(n.pods) == 0 {
		delete(s.byName, n.name)
	}
}
