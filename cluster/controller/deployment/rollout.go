package deployment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// rollout is one sync of one Deployment. d is a copy and may be changed; the
// ReplicaSets are replaced by what the API returns when they are.
type rollout struct {
	c     *Controller
	d     *appsv1.Deployment
	newer *appsv1.ReplicaSet // has d's template; nil if there is none yet
	old   []*appsv1.ReplicaSet
}

// sort tells the new ReplicaSet from the old ones. If several have the template,
// the oldest is it.
func (r *rollout) sort(all []*appsv1.ReplicaSet) {
	slices.SortStableFunc(all, byAge)
	for _, rs := range all {
		if r.newer == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.newer = rs
			continue
		}
		r.old = append(r.old, rs)
	}
}

// notePause keeps a paused rollout from running into its deadline.
func (r *rollout) notePause() {
	if !hasDeadline(r.d) {
		return
	}
	c := condition(r.d.Status.Conditions, appsv1.DeploymentProgressing)
	if c != nil && c.Reason == reasonTimedOut {
		return
	}
	paused := c != nil && c.Reason == reasonPaused
	switch {
	case r.d.Spec.Paused && !paused:
		setCondition(&r.d.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", r.c.now())
	case !r.d.Spec.Paused && paused:
		setCondition(&r.d.Status, appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", r.c.now())
	}
}

// resized reports whether the Deployment's size has changed since its active
// ReplicaSets were last scaled.
func (r *rollout) resized() bool {
	for _, rs := range r.all() {
		if desired, ok := number(rs, desiredKey); size(rs) > 0 && ok && desired != wanted(r.d) {
			return true
		}
	}
	return false
}

func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.newer == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.newer)
}

// resize follows a change of size without moving the rollout on.
func (r *rollout) resize(ctx context.Context) error {
	if err := r.number(ctx); err != nil {
		return err
	}
	if err := r.take(ctx, proportional(r.d, r.newer, r.old)...); err != nil {
		return err
	}
	if r.d.Spec.Paused {
		if err := r.prune(ctx); err != nil {
			return err
		}
	}
	return r.saveStatus(ctx)
}

// roll takes the next step of a rolling update.
func (r *rollout) roll(ctx context.Context) error {
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if r.newer == nil { // the namespace is going
		return r.saveStatus(ctx)
	}
	if s, ok := growNew(r.d, r.newer, r.old); ok {
		if err := r.take(ctx, s); err != nil {
			return err
		}
	}
	if err := r.take(ctx, shrinkOld(r.d, r.newer, r.old)...); err != nil {
		return err
	}
	return r.finish(ctx)
}

// recreate removes all old pods, then makes the new ones.
func (r *rollout) recreate(ctx context.Context) error {
	var down []step
	for _, rs := range r.old {
		if size(rs) > 0 {
			down = append(down, step{rs, 0})
		}
	}
	if len(down) > 0 {
		if err := r.number(ctx); err != nil {
			return err
		}
		if err := r.take(ctx, down...); err != nil {
			return err
		}
		return r.saveStatus(ctx)
	}
	if r.oldPodsLeft() {
		if err := r.number(ctx); err != nil {
			return err
		}
		return r.saveStatus(ctx)
	}
	if err := r.ensureNew(ctx); err != nil {
		return err
	}
	if r.newer == nil { // the namespace is going
		return r.saveStatus(ctx)
	}
	if size(r.newer) != wanted(r.d) {
		if err := r.take(ctx, step{r.newer, wanted(r.d)}); err != nil {
			return err
		}
	}
	return r.finish(ctx)
}

func (r *rollout) oldPodsLeft() bool {
	for _, rs := range r.old {
		for _, pod := range controller.Owned(r.c.pods, rs.UID) {
			if !controller.Finished(pod) {
				return true
			}
		}
	}
	return false
}

// finish prunes the history of a complete rollout and saves the status.
func (r *rollout) finish(ctx context.Context) error {
	if complete(r.d, &r.d.Status) {
		if err := r.prune(ctx); err != nil {
			return err
		}
	}
	return r.saveStatus(ctx)
}

// take scales ReplicaSets, and keeps the record of the Deployment's size on them.
func (r *rollout) take(ctx context.Context, steps ...step) error {
	surge, _ := fenceposts(r.d)
	for _, s := range steps {
		from := size(s.rs)
		changed := s.rs.DeepCopy()
		changed.Spec.Replicas = &s.to
		setSizes(changed, wanted(r.d), surge)
		if from == s.to && equality.Semantic.DeepEqual(changed.Annotations, s.rs.Annotations) {
			continue
		}
		saved, err := r.c.cfg.Client.AppsV1().ReplicaSets(s.rs.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
		if err != nil {
			return fmt.Errorf("scale replica set %s/%s from %d to %d: %w", s.rs.Namespace, s.rs.Name, from, s.to, err)
		}
		r.replace(s.rs, saved)
		r.tellScaled(saved.Name, from, s.to)
	}
	return nil
}

func setSizes(rs *appsv1.ReplicaSet, desired, surge int32) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desiredKey] = strconv.Itoa(int(desired))
	rs.Annotations[maxKey] = strconv.Itoa(int(desired + surge))
}

func (r *rollout) tellScaled(name string, from, to int32) {
	direction := "up"
	switch {
	case from == to:
		return
	case from > to:
		direction = "down"
	}
	r.c.cfg.Events.Eventf(r.d, corev1.EventTypeNormal, "ScalingReplicaSet",
		"Scaled %s replica set %s from %d to %d", direction, name, from, to)
}

func (r *rollout) replace(before, after *appsv1.ReplicaSet) {
	if r.newer == before {
		r.newer = after
		return
	}
	if i := slices.Index(r.old, before); i >= 0 {
		r.old[i] = after
	}
}

// prune deletes the oldest of too many old ReplicaSets.
func (r *rollout) prune(ctx context.Context) error {
	var errs []error
	for _, rs := range superfluous(r.d, r.old) {
		err := r.c.cfg.Client.AppsV1().ReplicaSets(rs.Namespace).Delete(ctx, rs.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(rs.UID)),
		})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete old replica set %s/%s: %w", rs.Namespace, rs.Name, err))
		}
	}
	return errors.Join(errs...)
}

// saveStatus writes the status if it differs, and looks again when the deadline
// may have passed.
func (r *rollout) saveStatus(ctx context.Context) error {
	stored, err := r.c.deployments.Deployments(r.d.Namespace).Get(r.d.Name)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("read deployment: %w", err)
	}
	now := r.c.now()
	status := decideStatus(r.d, r.newer, r.old, now)
	if !r.d.Spec.Paused {
		judgeProgress(r.d, &status, r.newer, r.old, now)
	} else {
		noteFailure(&status, r.newer, r.old, now)
	}
	if wait := deadlineIn(r.d, &status, now); wait > 0 {
		r.c.loop.AddAfter(controller.Key(r.d.Namespace, r.d.Name), wait)
	}
	if equality.Semantic.DeepEqual(stored.Status, status) {
		return nil
	}
	r.d.Status = status
	_, err = r.c.cfg.Client.AppsV1().Deployments(r.d.Namespace).UpdateStatus(ctx, r.d, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("update status of deployment %s/%s: %w", r.d.Namespace, r.d.Name, err)
	}
	return nil
}
