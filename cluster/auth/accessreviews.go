package auth

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// AuthorizationStorage serves authorization.k8s.io/v1.
func AuthorizationStorage(authz authorizer.UnconditionalAuthorizer, rules authorizer.RuleResolver) map[string]rest.Storage {
	return map[string]rest.Storage{
		"subjectaccessreviews": &review{
			empty:    func() runtime.Object { return &authorizationv1.SubjectAccessReview{} },
			singular: "subjectaccessreview",
			answer: func(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
				r := obj.(*authorizationv1.SubjectAccessReview)
				if errs := validateSubject(r.Spec); len(errs) > 0 {
					return nil, apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("SubjectAccessReview").GroupKind(), "", errs)
				}
				r.Status = decide(ctx, authz, subject(r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
				return r, nil
			},
		},
		"localsubjectaccessreviews": &review{
			empty:      func() runtime.Object { return &authorizationv1.LocalSubjectAccessReview{} },
			singular:   "localsubjectaccessreview",
			namespaced: true,
			answer: func(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
				r := obj.(*authorizationv1.LocalSubjectAccessReview)
				errs := validateSubject(r.Spec)
				if r.Spec.NonResourceAttributes != nil {
					errs = append(errs, field.Invalid(field.NewPath("spec", "nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request"))
				}
				if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != request.NamespaceValue(ctx) {
					errs = append(errs, field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
				}
				if len(errs) > 0 {
					return nil, apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("LocalSubjectAccessReview").GroupKind(), "", errs)
				}
				r.Status = decide(ctx, authz, subject(r.Spec), r.Spec.ResourceAttributes, nil)
				return r, nil
			},
		},
		"selfsubjectaccessreviews": &review{
			empty:    func() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} },
			singular: "selfsubjectaccessreview",
			answer: func(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
				r := obj.(*authorizationv1.SelfSubjectAccessReview)
				if errs := validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes); len(errs) > 0 {
					return nil, apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview").GroupKind(), "", errs)
				}
				u, ok := request.UserFrom(ctx)
				if !ok {
					return nil, apierrors.NewBadRequest("no user present on request")
				}
				r.Status = decide(ctx, authz, u, r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
				return r, nil
			},
		},
		"selfsubjectrulesreviews": &review{
			empty:    func() runtime.Object { return &authorizationv1.SelfSubjectRulesReview{} },
			singular: "selfsubjectrulesreview",
			answer: func(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
				return reviewRules(ctx, rules, obj.(*authorizationv1.SelfSubjectRulesReview))
			},
		},
	}
}

func validateAttributes(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) field.ErrorList {
	p := field.NewPath("spec", "resourceAttributes")
	switch {
	case r != nil && n != nil:
		return field.ErrorList{field.Invalid(field.NewPath("spec", "nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes")}
	case r == nil && n == nil:
		return field.ErrorList{field.Invalid(p, r, "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	}
	return nil
}

func validateSubject(s authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := validateAttributes(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func subject(s authorizationv1.SubjectAccessReviewSpec) user.Info {
	u := &user.DefaultInfo{Name: s.User, UID: s.UID, Groups: s.Groups}
	for k, v := range s.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return u
}

func decide(ctx context.Context, authz authorizer.UnconditionalAuthorizer, u user.Info, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	a := authorizer.AttributesRecord{User: u}
	if r != nil {
		a.ResourceRequest = true
		a.Verb, a.Namespace, a.APIGroup, a.APIVersion = r.Verb, r.Namespace, r.Group, r.Version
		a.Resource, a.Subresource, a.Name = r.Resource, r.Subresource, r.Name
		if a.APIVersion == "" {
			a.APIVersion = "*"
		}
		if s := r.FieldSelector; s != nil {
			a.FieldSelectorRequirements, a.FieldSelectorParsingErr = fieldRequirements(s)
		}
		if s := r.LabelSelector; s != nil {
			a.LabelSelectorRequirements, a.LabelSelectorParsingErr = labelRequirements(s)
		}
	} else {
		a.Verb, a.Path = n.Verb, n.Path
	}
	decision, reason, err := authz.Authorize(ctx, a)
	out := authorizationv1.SubjectAccessReviewStatus{
		Allowed: decision == authorizer.DecisionAllow,
		Denied:  decision == authorizer.DecisionDeny,
		Reason:  reason,
	}
	if err != nil {
		out.EvaluationError = err.Error()
	}
	return out
}

func fieldRequirements(s *authorizationv1.FieldSelectorAttributes) (fields.Requirements, error) {
	if s.RawSelector != "" {
		sel, err := fields.ParseSelector(s.RawSelector)
		if err != nil {
			return nil, err
		}
		return sel.Requirements(), nil
	}
	var out fields.Requirements
	for _, r := range s.Requirements {
		if len(r.Values) != 1 {
			return nil, fmt.Errorf("field selector on %q has %d values, want one", r.Key, len(r.Values))
		}
		switch r.Operator {
		case metav1.FieldSelectorOpIn:
			out = append(out, fields.Requirement{Operator: selection.Equals, Field: r.Key, Value: r.Values[0]})
		case metav1.FieldSelectorOpNotIn:
			out = append(out, fields.Requirement{Operator: selection.NotEquals, Field: r.Key, Value: r.Values[0]})
		default:
			return nil, fmt.Errorf("%q is not a valid field selector operator", r.Operator)
		}
	}
	return out, nil
}

func labelRequirements(s *authorizationv1.LabelSelectorAttributes) (labels.Requirements, error) {
	if s.RawSelector != "" {
		return labels.ParseToRequirements(s.RawSelector)
	}
	sel, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: s.Requirements})
	if err != nil {
		return nil, err
	}
	out, _ := sel.Requirements()
	return out, nil
}

func reviewRules(ctx context.Context, rules authorizer.RuleResolver, r *authorizationv1.SelfSubjectRulesReview) (runtime.Object, error) {
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	if r.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	resources, nonResources, incomplete, err := rules.RulesFor(ctx, u, r.Spec.Namespace)
	r.Status = authorizationv1.SubjectRulesReviewStatus{Incomplete: incomplete}
	for _, x := range resources {
		r.Status.ResourceRules = append(r.Status.ResourceRules, authorizationv1.ResourceRule{
			Verbs: x.GetVerbs(), APIGroups: x.GetAPIGroups(), Resources: x.GetResources(), ResourceNames: x.GetResourceNames()})
	}
	for _, x := range nonResources {
		r.Status.NonResourceRules = append(r.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: x.GetVerbs(), NonResourceURLs: x.GetNonResourceURLs()})
	}
	if err != nil {
		r.Status.EvaluationError = err.Error()
	}
	return r, nil
}
