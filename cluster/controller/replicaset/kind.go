package replicaset

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// kind is what differs between ReplicaSets and ReplicationControllers. The
// latter are shown as the former; what get returns may be shared with a cache.
type kind interface {
	gvk() schema.GroupVersionKind
	get(namespace, name string) (*appsv1.ReplicaSet, error)
	// live asks the API server, past the cache.
	live(ctx context.Context, namespace, name string) (uid types.UID, deleting bool, err error)
	updateStatus(ctx context.Context, owner *appsv1.ReplicaSet) error
	// matching returns the keys of the owners whose selector matches a pod.
	matching(pod *corev1.Pod) []string
	// family returns the owners that share a parent with owner, itself included:
	// the ReplicaSets of one Deployment.
	family(owner *appsv1.ReplicaSet) []types.UID
	watch(loop *controller.Loop, changed func(key string, gone bool)) error
}

type replicaSets struct{ cfg controller.Config }

func newReplicaSets(cfg controller.Config) kind { return replicaSets{cfg} }

func (k replicaSets) gvk() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
}

func (k replicaSets) get(namespace, name string) (*appsv1.ReplicaSet, error) {
	return k.cfg.Informers.Apps().V1().ReplicaSets().Lister().ReplicaSets(namespace).Get(name)
}

func (k replicaSets) live(ctx context.Context, namespace, name string) (types.UID, bool, error) {
	rs, err := k.cfg.Client.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", false, err
	}
	return rs.UID, rs.DeletionTimestamp != nil, nil
}

func (k replicaSets) updateStatus(ctx context.Context, owner *appsv1.ReplicaSet) error {
	_, err := k.cfg.Client.AppsV1().ReplicaSets(owner.Namespace).UpdateStatus(ctx, owner, metav1.UpdateOptions{})
	return err
}

func (k replicaSets) matching(pod *corev1.Pod) []string {
	all, err := k.cfg.Informers.Apps().V1().ReplicaSets().Lister().ReplicaSets(pod.Namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	var keys []string
	for _, rs := range all {
		selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			keys = append(keys, controller.Key(rs.Namespace, rs.Name))
		}
	}
	return keys
}

func (k replicaSets) family(owner *appsv1.ReplicaSet) []types.UID {
	parent := metav1.GetControllerOfNoCopy(owner)
	if parent == nil {
		return []types.UID{owner.UID}
	}
	all, err := k.cfg.Informers.Apps().V1().ReplicaSets().Lister().ReplicaSets(owner.Namespace).List(labels.Everything())
	if err != nil {
		return []types.UID{owner.UID}
	}
	var uids []types.UID
	for _, rs := range all {
		if ref := metav1.GetControllerOfNoCopy(rs); ref != nil && ref.UID == parent.UID {
			uids = append(uids, rs.UID)
		}
	}
	return uids
}

func (k replicaSets) watch(loop *controller.Loop, changed func(string, bool)) error {
	return controller.Watch(loop, k.cfg.Informers.Apps().V1().ReplicaSets().Informer(), func(old, cur *appsv1.ReplicaSet) {
		switch {
		case cur == nil:
			changed(controller.Key(old.Namespace, old.Name), true)
		default:
			changed(controller.Key(cur.Namespace, cur.Name), old != nil && old.UID != cur.UID)
		}
	})
}

type replicationControllers struct{ cfg controller.Config }

func newReplicationControllers(cfg controller.Config) kind { return replicationControllers{cfg} }

func (k replicationControllers) gvk() schema.GroupVersionKind {
	return corev1.SchemeGroupVersion.WithKind("ReplicationController")
}

func (k replicationControllers) get(namespace, name string) (*appsv1.ReplicaSet, error) {
	rc, err := k.cfg.Informers.Core().V1().ReplicationControllers().Lister().ReplicationControllers(namespace).Get(name)
	if err != nil {
		return nil, err
	}
	return asReplicaSet(rc), nil
}

func (k replicationControllers) live(ctx context.Context, namespace, name string) (types.UID, bool, error) {
	rc, err := k.cfg.Client.CoreV1().ReplicationControllers(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", false, err
	}
	return rc.UID, rc.DeletionTimestamp != nil, nil
}

// updateStatus writes the status alone: the rest of the object is the cached one.
func (k replicationControllers) updateStatus(ctx context.Context, owner *appsv1.ReplicaSet) error {
	cached, err := k.cfg.Informers.Core().V1().ReplicationControllers().Lister().ReplicationControllers(owner.Namespace).Get(owner.Name)
	if err != nil {
		return err
	}
	rc := cached.DeepCopy()
	rc.ResourceVersion = owner.ResourceVersion
	rc.Status = replicationControllerStatus(owner.Status)
	_, err = k.cfg.Client.CoreV1().ReplicationControllers(rc.Namespace).UpdateStatus(ctx, rc, metav1.UpdateOptions{})
	return err
}

func (k replicationControllers) matching(pod *corev1.Pod) []string {
	all, err := k.cfg.Informers.Core().V1().ReplicationControllers().Lister().ReplicationControllers(pod.Namespace).List(labels.Everything())
	if err != nil {
		return nil
	}
	var keys []string
	for _, rc := range all {
		if len(rc.Spec.Selector) > 0 && labels.SelectorFromSet(rc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			keys = append(keys, controller.Key(rc.Namespace, rc.Name))
		}
	}
	return keys
}

func (k replicationControllers) family(owner *appsv1.ReplicaSet) []types.UID {
	return []types.UID{owner.UID}
}

func (k replicationControllers) watch(loop *controller.Loop, changed func(string, bool)) error {
	return controller.Watch(loop, k.cfg.Informers.Core().V1().ReplicationControllers().Informer(), func(old, cur *corev1.ReplicationController) {
		switch {
		case cur == nil:
			changed(controller.Key(old.Namespace, old.Name), true)
		default:
			changed(controller.Key(cur.Namespace, cur.Name), old != nil && old.UID != cur.UID)
		}
	})
}

// asReplicaSet shows a ReplicationController as a ReplicaSet, sharing its parts.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		// Events and owner references must name what the user made.
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ReplicationController"},
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        rc.Spec.Replicas,
			MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas:             rc.Status.Replicas,
			FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas:        rc.Status.ReadyReplicas,
			AvailableReplicas:    rc.Status.AvailableReplicas,
			ObservedGeneration:   rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}

func replicationControllerStatus(s appsv1.ReplicaSetStatus) corev1.ReplicationControllerStatus {
	out := corev1.ReplicationControllerStatus{
		Replicas:             s.Replicas,
		FullyLabeledReplicas: s.FullyLabeledReplicas,
		ReadyReplicas:        s.ReadyReplicas,
		AvailableReplicas:    s.AvailableReplicas,
		ObservedGeneration:   s.ObservedGeneration,
	}
	for _, c := range s.Conditions {
		out.Conditions = append(out.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return out
}
