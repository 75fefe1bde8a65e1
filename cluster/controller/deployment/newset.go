package deployment

import (
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// number gives the new ReplicaSet, if there is one, the newest revision and the
// Deployment's annotations, and the Deployment the revision of its ReplicaSet.
func (r *rollout) number(ctx context.Context) error {
	if r.newer == nil {
		return nil
	}
	want := annotationsFor(r.d, r.newer.Annotations, nextRevision(r.old))
	if !equality.Semantic.DeepEqual(want, r.newer.Annotations) || r.newer.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		changed := r.newer.DeepCopy()
		changed.Annotations = want
		changed.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		saved, err := r.c.cfg.Client.AppsV1().ReplicaSets(changed.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("update replica set %s/%s: %w", changed.Namespace, changed.Name, err)
		}
		r.newer = saved
	}
	if hasDeadline(r.d) && condition(r.d.Status.Conditions, appsv1.DeploymentProgressing) == nil {
		setCondition(&r.d.Status, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonFound,
			fmt.Sprintf("Found new replica set %q", r.newer.Name), r.c.now())
	}
	return r.showRevision(ctx, r.newer.Annotations[revisionKey])
}

// showRevision writes the revision annotation of the Deployment.
func (r *rollout) showRevision(ctx context.Context, revision string) error {
	if r.d.Annotations[revisionKey] == revision {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": r.d.UID, "annotations": map[string]string{revisionKey: revision},
	}})
	if err != nil {
		return fmt.Errorf("encode revision: %w", err)
	}
	saved, err := r.c.cfg.Client.AppsV1().Deployments(r.d.Namespace).Patch(ctx, r.d.Name,
		types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("write revision %s of deployment %s/%s: %w", revision, r.d.Namespace, r.d.Name, err)
	}
	// What this sync decided so far goes on from the version just written. If
	// the user has changed the spec in between, its event leads to a new sync.
	r.d.ResourceVersion, r.d.Annotations = saved.ResourceVersion, saved.Annotations
	return nil
}

// ensureNew makes the ReplicaSet of d's template if there is none.
func (r *rollout) ensureNew(ctx context.Context) error {
	if r.newer != nil {
		return r.number(ctx)
	}
	rs, err := r.template()
	if err != nil {
		return err
	}
	made, err := r.c.cfg.Client.AppsV1().ReplicaSets(rs.Namespace).Create(ctx, rs, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return r.resolve(ctx, rs)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case err != nil:
		return r.createFailed(ctx, err)
	}
	r.newer = made
	r.tellScaled(made.Name, 0, size(made))
	if hasDeadline(r.d) {
		setCondition(&r.d.Status, appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonCreated,
			fmt.Sprintf("Created new replica set %q", made.Name), r.c.now())
	}
	return r.showRevision(ctx, made.Annotations[revisionKey])
}

// template is the ReplicaSet that ensureNew makes.
func (r *rollout) template() (*appsv1.ReplicaSet, error) {
	d := r.d
	hash, err := templateHash(&d.Spec.Template, d.Status.CollisionCount)
	if err != nil {
		return nil, err
	}
	t := *d.Spec.Template.DeepCopy()
	t.Labels = withHash(t.Labels, hash)
	n := sizeOfNew(d, 0, r.old)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:            d.Name + "-" + hash,
			Namespace:       d.Namespace,
			Labels:          t.Labels,
			Annotations:     annotationsFor(d, nil, nextRevision(r.old)),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, deploymentKind)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        &n,
			MinReadySeconds: d.Spec.MinReadySeconds,
			Selector:        selectorWithHash(d.Spec.Selector, hash),
			Template:        t,
		},
	}
	surge, _ := fenceposts(d)
	setSizes(rs, wanted(d), surge)
	return rs, nil
}

// resolve deals with a name that is taken: either the cache is behind and the
// ReplicaSet is ours, or two templates have the same hash.
func (r *rollout) resolve(ctx context.Context, rs *appsv1.ReplicaSet) error {
	there, err := r.c.cfg.Client.AppsV1().ReplicaSets(rs.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read replica set %s/%s: %w", rs.Namespace, rs.Name, err)
	}
	if metav1.IsControlledBy(there, r.d) && sameTemplate(&there.Spec.Template, &r.d.Spec.Template) {
		r.newer = there
		return r.number(ctx)
	}
	var collisions int32
	if r.d.Status.CollisionCount != nil {
		collisions = *r.d.Status.CollisionCount
	}
	collisions++
	r.d.Status.CollisionCount = &collisions
	saved, err := r.c.cfg.Client.AppsV1().Deployments(r.d.Namespace).UpdateStatus(ctx, r.d, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("count hash collision of deployment %s/%s: %w", r.d.Namespace, r.d.Name, err)
	}
	return fmt.Errorf("replica set name %s is taken; will try with collision count %d", rs.Name, *saved.Status.CollisionCount)
}

func (r *rollout) createFailed(ctx context.Context, cause error) error {
	message := fmt.Sprintf("Failed to create new replica set: %v", cause)
	r.c.cfg.Events.Event(r.d, corev1.EventTypeWarning, reasonCreateError, message)
	if hasDeadline(r.d) {
		before := r.d.Status.Conditions
		setCondition(&r.d.Status, appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonCreateError, message, r.c.now())
		if !equality.Semantic.DeepEqual(before, r.d.Status.Conditions) {
			if _, err := r.c.cfg.Client.AppsV1().Deployments(r.d.Namespace).UpdateStatus(ctx, r.d, metav1.UpdateOptions{}); err != nil {
				r.c.cfg.Logger.Warn("cannot record failure", "deployment", r.d.Namespace+"/"+r.d.Name, "error", err)
			}
		}
	}
	return fmt.Errorf("create replica set of deployment %s/%s: %w", r.d.Namespace, r.d.Name, cause)
}
