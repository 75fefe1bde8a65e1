package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/tools/cache"
)

// RBAC authorizes by Roles, ClusterRoles and their bindings, read from
// informers. Bindings are indexed by subject, so that a decision costs as much
// as the caller has bindings, not as the cluster has.
type RBAC struct {
	authorizer.AuthorizerFunc
	roles        rbaclisters.RoleLister
	clusterRoles rbaclisters.ClusterRoleLister
	roleBindings rbaclisters.RoleBindingLister
	clusterBinds rbaclisters.ClusterRoleBindingLister

	mu    sync.Mutex
	dirty bool
	index map[string][]binding // subject key -> bindings
}

// binding is one RoleBinding (namespace set) or ClusterRoleBinding.
type binding struct {
	namespace, name string
	role            rbacv1.RoleRef
}

// NewRBAC registers its informers with f; the caller starts f.
func NewRBAC(f informers.SharedInformerFactory) (*RBAC, error) {
	g := f.Rbac().V1()
	r := &RBAC{
		roles: g.Roles().Lister(), clusterRoles: g.ClusterRoles().Lister(),
		roleBindings: g.RoleBindings().Lister(), clusterBinds: g.ClusterRoleBindings().Lister(),
		dirty: true,
	}
	r.AuthorizerFunc = r.authorize
	changed := func() { r.mu.Lock(); r.dirty = true; r.mu.Unlock() }
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(any, any) { changed() },
		DeleteFunc: func(any) { changed() },
	}
	for _, i := range []cache.SharedIndexInformer{g.RoleBindings().Informer(), g.ClusterRoleBindings().Informer()} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch role bindings: %w", err)
		}
	}
	return r, nil
}

func subjectKey(kind, namespace, name string) string {
	return kind + "\x00" + namespace + "\x00" + name
}

// bindings gives what is bound to u in the whole cluster and in namespace.
func (r *RBAC) bindings(u user.Info, namespace string) ([]binding, error) {
	index, err := r.subjects()
	if err != nil {
		return nil, err
	}
	var out []binding
	add := func(key string) {
		for _, b := range index[key] {
			if b.namespace == "" || b.namespace == namespace {
				out = append(out, b)
			}
		}
	}
	add(subjectKey(rbacv1.UserKind, "", u.GetName()))
	for _, g := range u.GetGroups() {
		add(subjectKey(rbacv1.GroupKind, "", g))
	}
	if ns, name, err := serviceaccount.SplitUsername(u.GetName()); err == nil {
		add(subjectKey(rbacv1.ServiceAccountKind, ns, name))
	}
	return out, nil
}

// subjects gives the index, rebuilt when bindings have changed since. The map
// is replaced, never changed.
func (r *RBAC) subjects() (map[string][]binding, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty {
		return r.index, nil
	}
	index := map[string][]binding{}
	add := func(b binding, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			ns := ""
			if s.Kind == rbacv1.ServiceAccountKind {
				if ns = s.Namespace; ns == "" {
					ns = b.namespace
				}
			}
			k := subjectKey(s.Kind, ns, s.Name)
			index[k] = append(index[k], b)
		}
	}
	clusterBindings, err := r.clusterBinds.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	for _, b := range clusterBindings {
		add(binding{name: b.Name, role: b.RoleRef}, b.Subjects)
	}
	roleBindings, err := r.roleBindings.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	for _, b := range roleBindings {
		add(binding{namespace: b.Namespace, name: b.Name, role: b.RoleRef}, b.Subjects)
	}
	r.index, r.dirty = index, false
	return index, nil
}

// rules of the role that b refers to.
func (r *RBAC) rules(b binding) ([]rbacv1.PolicyRule, error) {
	switch b.role.Kind {
	case "Role":
		role, err := r.roles.Roles(b.namespace).Get(b.role.Name)
		if err != nil {
			return nil, err
		}
		return role.Rules, nil
	case "ClusterRole":
		role, err := r.clusterRoles.Get(b.role.Name)
		if err != nil {
			return nil, err
		}
		return role.Rules, nil
	}
	return nil, fmt.Errorf("unsupported role reference kind: %q", b.role.Kind)
}

// visit calls fn with every rule that applies to u, cluster-wide and in
// namespace, until fn returns false. Missing roles are reported together.
func (r *RBAC) visit(u user.Info, namespace string, fn func(binding, rbacv1.PolicyRule) bool) error {
	bindings, err := r.bindings(u, namespace)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range bindings {
		rules, err := r.rules(b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, rule := range rules {
			if !fn(b, rule) {
				return nil
			}
		}
	}
	return errors.Join(errs...)
}

func (r *RBAC) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	var by *binding
	err := r.visit(a.GetUser(), a.GetNamespace(), func(b binding, rule rbacv1.PolicyRule) bool {
		if !allows(rule, a) {
			return true
		}
		by = &b
		return false
	})
	if by != nil {
		kind, name := "ClusterRoleBinding", by.name
		if by.namespace != "" {
			kind, name = "RoleBinding", by.name+"/"+by.namespace
		}
		return authorizer.DecisionAllow, fmt.Sprintf("RBAC: allowed by %s %q of %s %q to %s", kind, name, by.role.Kind, by.role.Name, describe(a.GetUser())), nil
	}
	reason := ""
	if err != nil {
		reason = fmt.Sprintf("RBAC: %v", err)
		if !apierrors.IsNotFound(err) {
			return authorizer.DecisionNoOpinion, reason, nil
		}
	}
	return authorizer.DecisionNoOpinion, reason, nil
}

func describe(u user.Info) string {
	if ns, name, err := serviceaccount.SplitUsername(u.GetName()); err == nil {
		return fmt.Sprintf("ServiceAccount %q", name+"/"+ns)
	}
	return fmt.Sprintf("User %q", u.GetName())
}

// RulesFor implements authorizer.RuleResolver.
func (r *RBAC) RulesFor(_ context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	var resources []authorizer.ResourceRuleInfo
	var nonResources []authorizer.NonResourceRuleInfo
	err := r.visit(u, namespace, func(_ binding, rule rbacv1.PolicyRule) bool {
		if len(rule.Resources) > 0 {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{
				Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames})
		}
		if len(rule.NonResourceURLs) > 0 {
			nonResources = append(nonResources, &authorizer.DefaultNonResourceRuleInfo{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
		}
		return true
	})
	return resources, nonResources, false, err
}

// PolicyRules gives the rules u holds in namespace ("" for the whole cluster),
// for the check that nobody grants what they do not hold.
func (r *RBAC) PolicyRules(u user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	var out []rbacv1.PolicyRule
	err := r.visit(u, namespace, func(_ binding, rule rbacv1.PolicyRule) bool {
		out = append(out, rule)
		return true
	})
	return out, err
}

// allows tells whether one rule covers the request.
func allows(rule rbacv1.PolicyRule, a authorizer.Attributes) bool {
	if !has(rule.Verbs, a.GetVerb()) {
		return false
	}
	if !a.IsResourceRequest() {
		return slices.ContainsFunc(rule.NonResourceURLs, func(p string) bool { return urlMatches(p, a.GetPath()) })
	}
	return has(rule.APIGroups, a.GetAPIGroup()) && coversResource(rule.Resources, a.GetResource(), a.GetSubresource()) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.GetName()))
}

func has(list []string, v string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, v)
}

func coversResource(list []string, resource, subresource string) bool {
	full := resource
	if subresource != "" {
		full += "/" + subresource
	}
	return slices.ContainsFunc(list, func(x string) bool {
		return x == "*" || x == full || (subresource != "" && x == "*/"+subresource)
	})
}

func urlMatches(pattern, path string) bool {
	if pattern == "*" || pattern == path {
		return true
	}
	prefix, ok := strings.CutSuffix(pattern, "*")
	return ok && strings.HasPrefix(path, prefix)
}
