package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
	resourcehelper "k8s.io/component-helpers/resource"
)

// limitRanger applies the LimitRanges of a namespace to new pods and claims, and
// to pods that are resized: defaults first, then minima, maxima and ratios.
type limitRanger struct {
	*admission.Handler
	objects Objects
}

// Admit implements admission.MutationInterface: it fills defaults in.
func (l *limitRanger) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, err := limitedPod(a)
	if pod == nil || err != nil {
		return err
	}
	ranges, err := l.objects.LimitRanges(ctx, a.GetNamespace())
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read limit ranges: %w", err))
	}
	for _, r := range ranges {
		for _, item := range r.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			for _, c := range containers(pod) {
				c.Resources.Requests = withDefaults(c.Resources.Requests, item.DefaultRequest)
				c.Resources.Limits = withDefaults(c.Resources.Limits, item.Default)
			}
		}
	}
	return nil
}

// limitedPod gives the pod of a request that limits hold for, else nil.
func limitedPod(a admission.Attributes) (*corev1.Pod, error) {
	if pod, err := newPod(a); pod != nil || err != nil {
		return pod, err
	}
	pod, err := resizedPod(a)
	if pod == nil || err != nil || leaves(a) {
		return nil, err
	}
	return pod, nil
}

// limitedClaim gives the claim of a request that limits hold for, else nil: one
// that is on its way out has to lose its finalizers whatever its size.
func limitedClaim(a admission.Attributes) (*corev1.PersistentVolumeClaim, error) {
	if a.GetResource().GroupResource() != claimsResource || a.GetSubresource() != "" || leaves(a) {
		return nil, nil
	}
	return as[*corev1.PersistentVolumeClaim](a.GetObject())
}

// leaves tells whether what the request changes is being deleted.
func leaves(a admission.Attributes) bool {
	old, ok := a.GetOldObject().(metav1.Object)
	return ok && old.GetDeletionTimestamp() != nil
}

func withDefaults(list, defaults corev1.ResourceList) corev1.ResourceList {
	for k, v := range defaults {
		if _, ok := list[k]; !ok {
			if list == nil {
				list = corev1.ResourceList{}
			}
			list[k] = v.DeepCopy()
		}
	}
	return list
}

func containers(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range p.Spec.InitContainers {
		out = append(out, &p.Spec.InitContainers[i])
	}
	for i := range p.Spec.Containers {
		out = append(out, &p.Spec.Containers[i])
	}
	return out
}

// Validate implements admission.ValidationInterface: it checks the bounds.
func (l *limitRanger) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	var check func(corev1.LimitRangeItem) []error
	if pod, err := limitedPod(a); err != nil {
		return err
	} else if pod != nil {
		check = func(i corev1.LimitRangeItem) []error { return checkPod(pod, i) }
	}
	if claim, err := limitedClaim(a); err != nil {
		return err
	} else if claim != nil {
		check = func(i corev1.LimitRangeItem) []error {
			if i.Type != corev1.LimitTypePersistentVolumeClaim {
				return nil
			}
			return checkBounds(i, claim.Spec.Resources.Requests, claim.Spec.Resources.Requests)
		}
	}
	if check == nil {
		return nil
	}
	ranges, err := l.objects.LimitRanges(ctx, a.GetNamespace())
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read limit ranges: %w", err))
	}
	var errs []error
	for _, r := range ranges {
		for _, item := range r.Spec.Limits {
			errs = append(errs, check(item)...)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return admission.NewForbidden(a, utilerrors.NewAggregate(errs))
}

func checkPod(p *corev1.Pod, item corev1.LimitRangeItem) []error {
	var errs []error
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, c := range containers(p) {
			errs = append(errs, checkBounds(item, c.Resources.Requests, c.Resources.Limits)...)
		}
	case corev1.LimitTypePod:
		// What a runtime class adds is not the user's, so it does not count.
		o := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
		errs = checkBounds(item, resourcehelper.PodRequests(p, o), resourcehelper.PodLimits(p, o))
	}
	return errs
}

func checkBounds(item corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	for name, minimum := range item.Min {
		req, hasReq := requests[name]
		lim, hasLim := limits[name]
		switch {
		case !hasReq:
			errs = append(errs, fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", name, item.Type, minimum.String()))
		case req.Cmp(minimum) < 0:
			errs = append(errs, fmt.Errorf("minimum %s usage per %s is %s, but request is %s", name, item.Type, minimum.String(), req.String()))
		case hasLim && lim.Cmp(minimum) < 0:
			errs = append(errs, fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", name, item.Type, minimum.String(), lim.String()))
		}
	}
	for name, maximum := range item.Max {
		req, hasReq := requests[name]
		lim, hasLim := limits[name]
		switch {
		case !hasLim:
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", name, item.Type, maximum.String()))
		case lim.Cmp(maximum) > 0:
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", name, item.Type, maximum.String(), lim.String()))
		case hasReq && req.Cmp(maximum) > 0:
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, item.Type, maximum.String(), req.String()))
		}
	}
	for name, ratio := range item.MaxLimitRequestRatio {
		if err := checkRatio(name, item.Type, ratio, requests, limits); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func checkRatio(name corev1.ResourceName, typ corev1.LimitType, ratio resource.Quantity, requests, limits corev1.ResourceList) error {
	req, hasReq := requests[name]
	lim, hasLim := limits[name]
	describe := fmt.Sprintf("%s max limit to request ratio per %s is %s", name, typ, ratio.String())
	switch {
	case !hasReq || req.IsZero():
		return errors.New(describe + ", but no request is specified or request is 0")
	case !hasLim || lim.IsZero():
		return errors.New(describe + ", but no limit is specified or limit is 0")
	}
	if got := lim.AsApproximateFloat64() / req.AsApproximateFloat64(); got > ratio.AsApproximateFloat64() {
		return fmt.Errorf("%s, but provided ratio is %f", describe, got)
	}
	return nil
}
