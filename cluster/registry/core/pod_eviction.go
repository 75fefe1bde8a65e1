package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"
	"k8s.io/client-go/kubernetes"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"
	"k8s.io/client-go/util/retry"
)

const (
	// maxDisrupted bounds evictions that the budget's controller has not seen.
	maxDisrupted   = 2000
	violatesBudget = "Cannot evict pod as it would violate the pod's disruption budget."
)

// evictionBackoff is how conflicting writes of pod or budget are repeated.
var evictionBackoff = wait.Backoff{Steps: 20, Duration: 50 * time.Millisecond, Factor: 1, Jitter: 0.1}

// podEviction serves pods/eviction: a delete that asks the pod's disruption
// budget first.
type podEviction struct {
	store   *genericregistry.Store
	budgets policyclient.PodDisruptionBudgetsGetter
}

var (
	_ rest.NamedCreater             = (*podEviction)(nil)
	_ rest.GroupVersionKindProvider = (*podEviction)(nil)
	_ rest.GroupVersionAcceptor     = (*podEviction)(nil)
)

func newPodEviction(store *genericregistry.Store, client kubernetes.Interface) *podEviction {
	e := &podEviction{store: store}
	if client != nil {
		e.budgets = client.PolicyV1()
	}
	return e
}

// New implements rest.Storage.
func (e *podEviction) New() runtime.Object { return &policyv1.Eviction{} }

// Destroy implements rest.Storage; the pods own the store.
func (e *podEviction) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (e *podEviction) NamespaceScoped() bool { return e.store.NamespaceScoped() }

// GroupVersionKind implements rest.GroupVersionKindProvider.
func (e *podEviction) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return policyv1.SchemeGroupVersion.WithKind("Eviction")
}

// AcceptsGroupVersion implements rest.GroupVersionAcceptor.
func (e *podEviction) AcceptsGroupVersion(gv schema.GroupVersion) bool {
	return gv == policyv1.SchemeGroupVersion
}

// Create evicts the pod called name, or says why it has to stay.
func (e *podEviction) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	eviction, ok := obj.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Eviction object: %T", obj))
	}
	if name != eviction.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	wanted, err := evictionDeleteOptions(eviction, o)
	if err != nil {
		return nil, err
	}
	if validate != nil {
		if err := validate(ctx, eviction.DeepCopy()); err != nil {
			return nil, err
		}
	}
	// A pod that changes between the look and the delete is looked at again.
	err = retry.OnError(evictionBackoff, errIsRaced, func() error { return e.evict(ctx, name, wanted) })
	var raced *racedError
	if errors.As(err, &raced) {
		err = raced.conflict
	}
	if err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

func evictionDeleteOptions(eviction *policyv1.Eviction, o *metav1.CreateOptions) (*metav1.DeleteOptions, error) {
	wanted := &metav1.DeleteOptions{}
	if eviction.DeleteOptions != nil {
		wanted = eviction.DeleteOptions.DeepCopy()
	}
	switch {
	case len(wanted.DryRun) == 0:
		wanted.DryRun = o.DryRun
	case len(o.DryRun) > 0 && !slices.Equal(wanted.DryRun, o.DryRun):
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Non-matching dry-run options in request and content: %v and %v", o.DryRun, wanted.DryRun))
	}
	return wanted, nil
}

// racedError is a conflict that comes from the version this code pinned, not
// from one the caller pinned.
type racedError struct{ conflict error }

func (e *racedError) Error() string { return e.conflict.Error() }
func (e *racedError) Unwrap() error { return e.conflict }

func errIsRaced(err error) bool {
	var raced *racedError
	return errors.As(err, &raced)
}

func (e *podEviction) evict(ctx context.Context, name string, wanted *metav1.DeleteOptions) error {
	obj, err := e.store.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return err
	}
	pod := obj.(*corev1.Pod)
	if noDisruption(pod) {
		return e.remove(ctx, pod, wanted, true)
	}
	budget, err := e.budgetOf(ctx, pod)
	switch {
	case err != nil:
		return err
	case budget == nil:
		return e.remove(ctx, pod, wanted, false)
	case unhealthyMayGo(pod, budget):
		return e.remove(ctx, pod, wanted, true)
	}
	if err := e.charge(ctx, pod, budget, dryrun.IsDryRun(wanted.DryRun)); err != nil {
		return err
	}
	return e.remove(ctx, pod, wanted, false)
}

// noDisruption holds for pods whose loss nobody notices.
func noDisruption(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// unhealthyMayGo holds for running pods that are not ready anyway, where the
// budget's policy lets them go.
func unhealthyMayGo(pod *corev1.Pod, b *policyv1.PodDisruptionBudget) bool {
	if hasCondition(pod, corev1.PodReady) {
		return false
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

func (e *podEviction) budgetOf(ctx context.Context, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	if e.budgets == nil {
		return nil, nil
	}
	list, err := e.budgets.PodDisruptionBudgets(pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("disruption budgets of pod %s: %w", pod.Name, err)
	}
	var found *policyv1.PodDisruptionBudget
	for i := range list.Items {
		selector, err := metav1.LabelSelectorAsSelector(list.Items[i].Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if found != nil {
			return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
				Status: metav1.StatusFailure, Code: 500, Reason: metav1.StatusReasonInternalError,
				Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
			}}
		}
		found = &list.Items[i]
	}
	return found, nil
}

// charge takes one disruption off the budget.
func (e *podEviction) charge(ctx context.Context, pod *corev1.Pod, b *policyv1.PodDisruptionBudget, dryRun bool) error {
	client := e.budgets.PodDisruptionBudgets(pod.Namespace)
	first := true
	err := retry.RetryOnConflict(evictionBackoff, func() error {
		if !first {
			var err error
			if b, err = client.Get(ctx, b.Name, metav1.GetOptions{}); err != nil {
				return err
			}
		}
		first = false
		next, err := disrupted(b, pod.Name)
		if err != nil || dryRun {
			return err
		}
		_, err = client.UpdateStatus(ctx, next, metav1.UpdateOptions{})
		return err
	})
	if apierrors.IsConflict(err) {
		return tooManyRequests(b.Name, "The disruption budget %s is still being processed by the server.")
	}
	return err
}

// disrupted gives the budget after the loss of the pod, or says why it cannot
// be lost.
func disrupted(b *policyv1.PodDisruptionBudget, pod string) (*policyv1.PodDisruptionBudget, error) {
	resource := policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets").GroupResource()
	switch {
	case b.Status.ObservedGeneration < b.Generation:
		return nil, tooManyRequests(b.Name, "The disruption budget %s is still being processed by the server.")
	case b.Status.DisruptionsAllowed < 0:
		return nil, apierrors.NewForbidden(resource, b.Name, errors.New("pdb disruptions allowed is negative"))
	case len(b.Status.DisruptedPods) > maxDisrupted:
		return nil, apierrors.NewForbidden(resource, b.Name, errors.New("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case b.Status.DisruptionsAllowed == 0:
		err := apierrors.NewTooManyRequests(violatesBudget, 0)
		cause := fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy)
		if c := meta.FindStatusCondition(b.Status.Conditions, policyv1.DisruptionAllowedCondition); c != nil && c.Reason == policyv1.SyncFailedReason {
			cause = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently because it failed sync: %v", b.Name, c.Message)
		}
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: cause})
		return nil, err
	}
	next := b.DeepCopy()
	next.Status.DisruptionsAllowed--
	if next.Status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&next.Status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
			Reason: policyv1.InsufficientPodsReason, ObservedGeneration: next.Status.ObservedGeneration,
		})
	}
	if next.Status.DisruptedPods == nil {
		next.Status.DisruptedPods = map[string]metav1.Time{}
	}
	// The controller forgets entries whose pod does not go away in time.
	next.Status.DisruptedPods[pod] = metav1.Now()
	return next, nil
}

func tooManyRequests(budget, cause string) error {
	err := apierrors.NewTooManyRequests(violatesBudget, 10)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes,
		metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: fmt.Sprintf(cause, budget)})
	return err
}

// remove marks the pod as evicted and deletes it. With pin, it goes only in the
// state that was looked at.
func (e *podEviction) remove(ctx context.Context, pod *corev1.Pod, wanted *metav1.DeleteOptions, pin bool) error {
	o := wanted.DeepCopy()
	if o.Preconditions == nil {
		o.Preconditions = &metav1.Preconditions{}
	}
	pinned := pin && o.Preconditions.ResourceVersion == nil
	if o.Preconditions.UID == nil {
		o.Preconditions.UID = &pod.UID
	}
	if pinned {
		o.Preconditions.ResourceVersion = &pod.ResourceVersion
	}
	err := e.markAndDelete(ctx, pod, o)
	if pinned && apierrors.IsConflict(err) {
		return &racedError{err}
	}
	return err
}

func (e *podEviction) markAndDelete(ctx context.Context, pod *corev1.Pod, o *metav1.DeleteOptions) error {
	if !dryrun.IsDryRun(o.DryRun) {
		version, err := e.mark(ctx, pod.Name, o.Preconditions)
		if err != nil {
			return err
		}
		if o.Preconditions.ResourceVersion != nil {
			o.Preconditions.ResourceVersion = &version
		}
	}
	_, _, err := e.store.Delete(ctx, pod.Name, rest.ValidateAllObjectFunc, o)
	return err
}

// mark tells in the pod's conditions why it ends, and gives its new version.
func (e *podEviction) mark(ctx context.Context, name string, only *metav1.Preconditions) (string, error) {
	key, err := e.store.KeyFunc(ctx, name)
	if err != nil {
		return "", err
	}
	out := &corev1.Pod{}
	pre := &storage.Preconditions{UID: only.UID, ResourceVersion: only.ResourceVersion}
	err = e.store.Storage.GuaranteedUpdate(ctx, key, out, false, pre, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("evict pod %s: unexpected object: %T", name, obj)
		}
		setPodCondition(pod, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
		})
		return pod, nil
	}), false, nil)
	if err != nil {
		resource := schema.GroupResource{Resource: "pods"}
		return "", storeerr.InterpretUpdateError(storeerr.InterpretGetError(err, resource, name), resource, name)
	}
	return out.ResourceVersion, nil
}
