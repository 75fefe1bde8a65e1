package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-sh/skiff/cluster/localpath"
)

// What users read of nodes that a pod's volumes keep it from.
const (
	noVolumeHere   = "node(s) didn't match PersistentVolume's node affinity"
	noVolumeToBind = "node(s) didn't find available persistent volumes to bind"
	noRoom         = "node(s) did not have enough free storage"
	noZone         = "node(s) had no available volume zone"
	claimInUse     = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
)

// claimPlan is what a claim that waits for its pod's node gets there: a volume
// that exists, or with volume "" one that is made.
type claimPlan struct {
	claim  *corev1.PersistentVolumeClaim
	node   string
	volume string
	since  uint64 // the version of the claim that names the node to its provisioner
}

// restrictionsFilter keeps claims that only one pod may use to one pod.
func restrictionsFilter(p *podInfo, s *state) check {
	for _, st := range p.claims {
		if slices.Contains(st.claim.Spec.AccessModes, corev1.ReadWriteOncePod) && s.claims[claimKey(st.claim.Namespace, st.claim.Name)] > 0 {
			return func(*nodeInfo) []string { return []string{claimInUse} }
		}
	}
	return nil
}

// zoneLabels keep volumes to a part of the cluster, as volumes of clouds have
// them.
var zoneLabels = []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion}

// newZoneLabels are what nodes may have in place of the labels of older volumes.
var newZoneLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
}

// zoneFilter refuses nodes in other zones than a bound volume is labelled with.
// Values may be several, with "__" between. Nodes without any such label are in
// no zone and accepted.
func zoneFilter(p *podInfo, _ *state) check {
	type need struct {
		key    string
		values sets.Set[string]
	}
	var needs []need
	for _, st := range p.claims {
		if st.volume == nil {
			continue
		}
		for _, key := range zoneLabels {
			if v, ok := st.volume.Labels[key]; ok {
				needs = append(needs, need{key, sets.New(strings.Split(v, "__")...)})
			}
		}
	}
	if needs == nil {
		return nil
	}
	return func(n *nodeInfo) []string {
		if !slices.ContainsFunc(zoneLabels, func(key string) bool { _, ok := n.node.Labels[key]; return ok }) {
			return nil
		}
		for _, need := range needs {
			v, ok := n.node.Labels[need.key]
			if !ok {
				v, ok = n.node.Labels[newZoneLabels[need.key]]
			}
			if !ok || !need.values.Has(v) {
				return []string{noZone}
			}
		}
		return nil
	}
}

// volumeFilter refuses nodes where a bound volume is not to be had, and those
// where a claim that waits for a node would get none.
func volumeFilter(p *podInfo, s *state) check {
	if len(p.claims) == 0 {
		return nil
	}
	return func(n *nodeInfo) []string {
		_, why := s.planClaims(p, n)
		return why
	}
}

// planClaims works out what the claims of p get on a node, or why they get
// nothing.
func (s *state) planClaims(p *podInfo, n *nodeInfo) (plan []claimPlan, why []string) {
	chosen := map[string]*corev1.PersistentVolume{}
	for _, st := range p.claims {
		if st.volume != nil {
			if storagehelpers.CheckNodeAffinity(st.volume, n.node.Labels) != nil {
				return nil, []string{noVolumeHere}
			}
			continue
		}
		one, reason := s.planClaim(st, n, chosen)
		if reason != "" {
			return nil, []string{reason}
		}
		if one.volume != "" {
			chosen[one.volume] = nil
		}
		plan = append(plan, one)
	}
	return plan, nil
}

func (s *state) planClaim(st claimState, n *nodeInfo, chosen map[string]*corev1.PersistentVolume) (claimPlan, string) {
	plan := claimPlan{claim: st.claim, node: n.name}
	decided, ok := s.volumes.assumption(st.claim.UID)
	if !ok {
		decided.node, ok = st.claim.Annotations[storagehelpers.AnnSelectedNode]
	}
	if ok { // for another pod, or in an attempt before
		if decided.volume == "" {
			if decided.node != n.name {
				return plan, noVolumeToBind
			}
			return plan, ""
		}
		v, err := s.volumes.byName.Get(decided.volume)
		if err != nil || storagehelpers.CheckNodeAffinity(v, n.node.Labels) != nil {
			return plan, noVolumeHere
		}
		plan.volume = decided.volume
		return plan, ""
	}
	excluded := s.volumes.taken(st.claim.UID)
	maps.Copy(excluded, chosen)
	v, err := storagehelpers.FindMatchingVolume(st.claim, s.volumes.ofClass(st.class.Name), n.node, excluded, false, true)
	switch {
	case err != nil:
		return plan, err.Error()
	case v != nil:
		plan.volume = v.Name
		return plan, ""
	case st.class.Provisioner == storagehelpers.NotSupportedProvisioner || st.class.Provisioner == "" || !allowed(st.class, n.node):
		return plan, noVolumeToBind
	case st.class.Provisioner == localpath.Provisioner:
		if root, _ := localpath.Offer(n.node); root == "" {
			return plan, noVolumeToBind
		}
		if why := localpath.Refuse(st.class, st.claim); why != "" {
			return plan, fmt.Sprintf("persistentvolumeclaim %q: %s", st.claim.Name, why)
		}
		if localpath.Unfit(n.node, st.claim) != "" {
			return plan, noRoom
		}
	}
	return plan, ""
}

// allowed reports whether a class makes volumes for a node.
func allowed(class *storagev1.StorageClass, node *corev1.Node) bool {
	if len(class.AllowedTopologies) == 0 {
		return true
	}
	return slices.ContainsFunc(class.AllowedTopologies, func(t corev1.TopologySelectorTerm) bool {
		for _, e := range t.MatchLabelExpressions {
			if v, ok := node.Labels[e.Key]; !ok || !slices.Contains(e.Values, v) {
				return false
			}
		}
		return len(t.MatchLabelExpressions) > 0
	})
}

func claimKey(namespace, name string) string { return namespace + "/" + name }
