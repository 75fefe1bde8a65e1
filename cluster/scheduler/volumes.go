package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// volumes is what decisions about claims are made on: the claims, volumes and
// classes of the API, and what was decided and is not seen there yet.
type volumes struct {
	claims  corelisters.PersistentVolumeClaimLister
	byName  corelisters.PersistentVolumeLister
	byClass cache.Indexer // of volumes
	classes storagelisters.StorageClassLister

	mu      sync.Mutex
	assumed map[types.UID]*assumption // by claim; guarded by mu
	changed chan struct{}             // closed and made anew with each change; guarded by mu
}

// assumption is what a claim gets that has no volume yet: one that exists, or
// one to be made on a node.
type assumption struct {
	volume string // "" when it has to be made
	node   string
	pods   int // that rely on it
}

// classIndex finds volumes by their class.
const classIndex = "skiff/scheduler-class"

func newVolumes(f informers.SharedInformerFactory) (*volumes, error) {
	inf := f.Core().V1().PersistentVolumes().Informer()
	err := inf.AddIndexers(cache.Indexers{classIndex: func(obj any) ([]string, error) {
		v, ok := obj.(*corev1.PersistentVolume)
		if !ok {
			return nil, nil
		}
		return []string{storagehelpers.GetPersistentVolumeClass(v)}, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("index volumes: %w", err)
	}
	return &volumes{
		claims: f.Core().V1().PersistentVolumeClaims().Lister(), byName: f.Core().V1().PersistentVolumes().Lister(), byClass: inf.GetIndexer(),
		classes: f.Storage().V1().StorageClasses().Lister(), assumed: map[types.UID]*assumption{}, changed: make(chan struct{}),
	}, nil
}

// next is closed when a claim or a volume has changed after the call.
func (v *volumes) next() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// poke lets those look again who wait for volumes.
func (v *volumes) poke() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.assumed) == 0 {
		return
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

// claimNames gives the claims that a pod's volumes name.
func claimNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		switch vol := &pod.Spec.Volumes[i]; {
		case vol.PersistentVolumeClaim != nil:
			names = append(names, vol.PersistentVolumeClaim.ClaimName)
		case vol.Ephemeral != nil:
			names = append(names, ephemeral.VolumeClaimName(pod, vol))
		}
	}
	return names
}

// claimState is a claim of a pod, and what is known of its volume.
type claimState struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume // that it is bound to; nil without
	class  *storagev1.StorageClass  // of a claim that waits for the pod's node
}

// claimsOf looks up the claims of a pod. why tells what has to happen before any
// node can be chosen; "" for nothing.
func (v *volumes) claimsOf(pod *corev1.Pod) (states []claimState, why string) {
	seen := map[string]bool{}
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		name := ""
		switch {
		case vol.PersistentVolumeClaim != nil:
			name = vol.PersistentVolumeClaim.ClaimName
		case vol.Ephemeral != nil:
			name = ephemeral.VolumeClaimName(pod, vol)
		default:
			continue
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		claim, err := v.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
		switch {
		case apierrors.IsNotFound(err) && vol.Ephemeral != nil:
			return nil, fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case err != nil:
			return nil, fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case claim.Status.Phase == corev1.ClaimLost:
			return nil, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		case claim.DeletionTimestamp != nil:
			return nil, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		}
		if vol.Ephemeral != nil {
			if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
				return nil, err.Error()
			}
		}
		st, why := v.look(claim)
		if why != "" {
			return nil, why
		}
		states = append(states, st)
	}
	// The smallest request first: it leaves the larger volumes to others.
	slices.SortStableFunc(states, func(a, b claimState) int {
		x, y := a.claim.Spec.Resources.Requests[corev1.ResourceStorage], b.claim.Spec.Resources.Requests[corev1.ResourceStorage]
		return cmp.Or(x.Cmp(y), cmp.Compare(a.claim.Name, b.claim.Name))
	})
	return states, ""
}

func (v *volumes) look(claim *corev1.PersistentVolumeClaim) (claimState, string) {
	st := claimState{claim: claim}
	if claim.Spec.VolumeName != "" && boundCompletely(claim) {
		volume, err := v.byName.Get(claim.Spec.VolumeName)
		if err != nil {
			return st, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", claim.Name, claim.Spec.VolumeName)
		}
		st.volume = volume
		return st, ""
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	class, err := v.classes.Get(name)
	if claim.Spec.VolumeName != "" || name == "" || err != nil || class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
		return st, "pod has unbound immediate PersistentVolumeClaims"
	}
	st.class = class
	return st, ""
}

// boundCompletely reports whether the binder has finished with a claim.
func boundCompletely(claim *corev1.PersistentVolumeClaim) bool {
	_, ok := claim.Annotations[storagehelpers.AnnBindCompleted]
	return ok
}

// ofClass gives the volumes of a class.
func (v *volumes) ofClass(name string) []*corev1.PersistentVolume {
	objs, err := v.byClass.ByIndex(classIndex, name)
	if err != nil {
		return nil
	}
	out := make([]*corev1.PersistentVolume, 0, len(objs))
	for _, obj := range objs {
		if p, ok := obj.(*corev1.PersistentVolume); ok {
			out = append(out, p)
		}
	}
	return out
}

// taken gives the volumes that others than claim are about to get.
func (v *volumes) taken(claim types.UID) map[string]*corev1.PersistentVolume {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[string]*corev1.PersistentVolume{}
	for uid, a := range v.assumed {
		if uid != claim && a.volume != "" {
			out[a.volume] = nil
		}
	}
	return out
}

func (v *volumes) assumption(claim types.UID) (assumption, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a, ok := v.assumed[claim]; ok {
		return *a, true
	}
	return assumption{}, false
}

// assume records what the claims of a pod get; release takes it back, or ends it
// when the API shows it.
func (v *volumes) assume(plan []claimPlan) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range plan {
		a, ok := v.assumed[p.claim.UID]
		if !ok {
			a = &assumption{volume: p.volume, node: p.node}
			v.assumed[p.claim.UID] = a
		}
		a.pods++
	}
}

func (v *volumes) release(plan []claimPlan) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range plan {
		if a, ok := v.assumed[p.claim.UID]; ok {
			if a.pods--; a.pods == 0 {
				delete(v.assumed, p.claim.UID)
			}
		}
	}
}
