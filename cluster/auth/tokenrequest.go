package auth

import (
	"context"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"
)

const (
	defaultTokenSeconds = 3600
	minTokenSeconds     = 600
	maxTokenSeconds     = 1 << 32
)

// TokenRequestREST serves serviceaccounts/NAME/token.
type TokenRequestREST struct{ tokens *Tokens }

var (
	_ rest.NamedCreater             = (*TokenRequestREST)(nil)
	_ rest.GroupVersionKindProvider = (*TokenRequestREST)(nil)
	_ rest.Scoper                   = (*TokenRequestREST)(nil)
)

// TokenRequest is the storage of serviceaccounts/token.
func (t *Tokens) TokenRequest() *TokenRequestREST { return &TokenRequestREST{t} }

// New implements rest.Storage.
func (*TokenRequestREST) New() runtime.Object { return &authenticationv1.TokenRequest{} }

// Destroy implements rest.Storage.
func (*TokenRequestREST) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (*TokenRequestREST) NamespaceScoped() bool { return true }

// GroupVersionKind implements rest.GroupVersionKindProvider.
func (*TokenRequestREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
}

// Create implements rest.NamedCreater.
func (r *TokenRequestREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	req, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("want a TokenRequest, got %T", obj))
	}
	namespace := request.NamespaceValue(ctx)
	if req.Name != "" && req.Name != name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("name in URL does not match name in TokenRequest: %q != %q", name, req.Name))
	}
	req.Name, req.Namespace = name, namespace
	if req.Spec.ExpirationSeconds == nil {
		req.Spec.ExpirationSeconds = ptr.To[int64](defaultTokenSeconds)
	}
	if errs := validateTokenRequest(req); len(errs) > 0 {
		return nil, apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), name, errs)
	}
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = slices.Clone(r.tokens.audiences)
	}
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	claims, err := r.claims(ctx, namespace, name, req.Spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	if len(o.DryRun) > 0 {
		return req, nil
	}
	token, expires, err := r.tokens.sign(grant{claims, req.Spec.Audiences, time.Duration(*req.Spec.ExpirationSeconds) * time.Second})
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	req.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.Time{Time: expires}}
	return req, nil
}

func validateTokenRequest(r *authenticationv1.TokenRequest) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("spec", "expirationSeconds")
	switch s := *r.Spec.ExpirationSeconds; {
	case s < minTokenSeconds:
		errs = append(errs, field.Invalid(p, s, "may not specify a duration less than 10 minutes"))
	case s > maxTokenSeconds:
		errs = append(errs, field.Invalid(p, s, "may not specify a duration larger than 2^32 seconds"))
	}
	return errs
}

func (r *TokenRequestREST) claims(ctx context.Context, namespace, name string, bound *authenticationv1.BoundObjectReference) (kubernetesClaims, error) {
	sa, err := r.tokens.objects.ServiceAccount(ctx, namespace, name)
	if err != nil {
		return kubernetesClaims{}, err
	}
	c := kubernetesClaims{Namespace: namespace, ServiceAccount: ref{sa.Name, sa.UID}}
	if bound == nil {
		return c, nil
	}
	var uid types.UID
	switch gvk := bound.APIVersion + "/" + bound.Kind; gvk {
	case "v1/Pod":
		p, err := r.tokens.objects.Pod(ctx, namespace, bound.Name)
		if err != nil {
			return c, err
		}
		if p.Spec.ServiceAccountName != sa.Name {
			return c, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", sa.Name))
		}
		uid = p.UID
		c.Pod = &ref{p.Name, p.UID}
		if p.Spec.NodeName != "" {
			c.Node = &ref{Name: p.Spec.NodeName}
			if n, err := r.tokens.objects.Node(ctx, p.Spec.NodeName); err == nil {
				c.Node.UID = n.UID
			}
		}
	case "v1/Secret":
		s, err := r.tokens.objects.Secret(ctx, namespace, bound.Name)
		if err != nil {
			return c, err
		}
		uid = s.UID
		c.Secret = &ref{s.Name, s.UID}
	case "v1/Node":
		n, err := r.tokens.objects.Node(ctx, bound.Name)
		if err != nil {
			return c, err
		}
		uid = n.UID
		c.Node = &ref{n.Name, n.UID}
	default:
		return c, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk))
	}
	if bound.UID != "" && bound.UID != uid {
		return c, apierrors.NewConflict(schema.GroupResource{Resource: bound.Kind}, bound.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", bound.UID))
	}
	return c, nil
}
