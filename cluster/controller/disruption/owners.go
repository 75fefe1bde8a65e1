package disruption

import (
	"errors"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// workload is what of an owner of pods changes a budget.
type workload struct {
	namespace string
	uid       types.UID
	replicas  int32
	parent    types.UID
	labels    map[string]string // of its pods
}

// watchOwners wakes the budgets that are relative to a scale when it changes:
// that need not change a pod.
func (c *Controller) watchOwners() error {
	core, apps := c.cfg.Informers.Core().V1(), c.cfg.Informers.Apps().V1()
	return errors.Join(
		watchOwner(c, apps.Deployments().Informer(), func(d *appsv1.Deployment) workload {
			return view(d, d.Spec.Replicas, &d.Spec.Template)
		}),
		watchOwner(c, apps.ReplicaSets().Informer(), func(rs *appsv1.ReplicaSet) workload {
			return view(rs, rs.Spec.Replicas, &rs.Spec.Template)
		}),
		watchOwner(c, apps.StatefulSets().Informer(), func(s *appsv1.StatefulSet) workload {
			return view(s, s.Spec.Replicas, &s.Spec.Template)
		}),
		watchOwner(c, core.ReplicationControllers().Informer(), func(rc *corev1.ReplicationController) workload {
			return view(rc, rc.Spec.Replicas, rc.Spec.Template)
		}),
	)
}

func view(o metav1.Object, replicas *int32, template *corev1.PodTemplateSpec) workload {
	w := workload{namespace: o.GetNamespace(), uid: o.GetUID(), replicas: ptr.Deref(replicas, 1)}
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
		w.parent = ref.UID
	}
	if template != nil {
		w.labels = template.Labels
	}
	return w
}

func watchOwner[T any](c *Controller, inf cache.SharedIndexInformer, view func(*T) workload) error {
	return controller.Watch(c.loop, inf, func(old, cur *T) {
		if old != nil && cur != nil {
			if a, b := view(old), view(cur); a.uid == b.uid && a.replicas == b.replicas && a.parent == b.parent {
				return
			}
		}
		if cur == nil {
			cur = old
		}
		w := view(cur)
		c.wake(w.namespace, w.labels, relative)
	})
}
