package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// checkFunc refuses obj, which replaces old (nil on create), when its writer
// would grant more than they hold.
type checkFunc func(ctx context.Context, obj, old runtime.Object) error

// guarded is a store whose writes are checked for escalation.
type guarded struct {
	*registry.Store
	check checkFunc
}

var _ rest.StandardStorage = (*guarded)(nil)

// Create implements rest.Creater.
func (g *guarded) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	if err := g.check(ctx, obj, nil); err != nil {
		return nil, err
	}
	return g.Store.Create(ctx, obj, validate, o)
}

// Update implements rest.Updater.
func (g *guarded) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, force bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	info = rest.WrapUpdatedObjectInfo(info, func(ctx context.Context, obj, old runtime.Object) (runtime.Object, error) {
		return obj, g.check(ctx, obj, old)
	})
	return g.Store.Update(ctx, name, info, create, update, force, o)
}

// guard knows who may grant what.
type guard struct {
	cfg                 Config
	roles, clusterRoles *registry.Store
}

func resource(name string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{APIGroup: rbacv1.GroupName, APIVersion: "*", Resource: name, ResourceRequest: true}
}

// everything is what an aggregated role may come to grant.
var everything = []rbacv1.PolicyRule{
	{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}},
	{NonResourceURLs: []string{"*"}, Verbs: []string{"*"}},
}

func (g *guard) role(ctx context.Context, obj, old runtime.Object) error {
	r := obj.(*rbacv1.Role)
	if o, ok := old.(*rbacv1.Role); ok && onlyGarbageFields(r, o, func(c *rbacv1.Role) *metav1.ObjectMeta { return &c.ObjectMeta }) ||
		g.may(ctx, "escalate", "roles", r.Name) {
		return nil
	}
	return forbidden("roles", r.Name, g.holds(ctx, r.Rules))
}

func (g *guard) clusterRole(ctx context.Context, obj, old runtime.Object) error {
	r := obj.(*rbacv1.ClusterRole)
	o, ok := old.(*rbacv1.ClusterRole)
	if ok && onlyGarbageFields(r, o, func(c *rbacv1.ClusterRole) *metav1.ObjectMeta { return &c.ObjectMeta }) ||
		g.may(ctx, "escalate", "clusterroles", r.Name) {
		return nil
	}
	if err := g.holds(ctx, r.Rules); err != nil {
		return forbidden("clusterroles", r.Name, err)
	}
	if r.AggregationRule != nil || ok && o.AggregationRule != nil {
		if g.holds(ctx, everything) != nil {
			return forbidden("clusterroles", r.Name, errors.New("must have cluster-admin privileges to use the aggregationRule"))
		}
	}
	return nil
}

func (g *guard) roleBinding(ctx context.Context, obj, old runtime.Object) error {
	b := obj.(*rbacv1.RoleBinding)
	if o, ok := old.(*rbacv1.RoleBinding); ok && onlyGarbageFields(b, o, func(c *rbacv1.RoleBinding) *metav1.ObjectMeta { return &c.ObjectMeta }) {
		return nil
	}
	return g.binding(ctx, "rolebindings", b.Name, b.RoleRef)
}

func (g *guard) clusterRoleBinding(ctx context.Context, obj, old runtime.Object) error {
	b := obj.(*rbacv1.ClusterRoleBinding)
	if o, ok := old.(*rbacv1.ClusterRoleBinding); ok && onlyGarbageFields(b, o, func(c *rbacv1.ClusterRoleBinding) *metav1.ObjectMeta { return &c.ObjectMeta }) {
		return nil
	}
	return g.binding(ctx, "clusterrolebindings", b.Name, b.RoleRef)
}

// binding checks that the user may bind the role or holds all of it.
func (g *guard) binding(ctx context.Context, kind, name string, ref rbacv1.RoleRef) error {
	target := "clusterroles"
	if ref.Kind == "Role" {
		target = "roles"
	}
	if g.may(ctx, "bind", target, ref.Name) {
		return nil
	}
	rules, err := g.rulesOf(ctx, ref)
	if err != nil {
		return err
	}
	return forbidden(kind, name, g.holds(ctx, rules))
}

func (g *guard) rulesOf(ctx context.Context, ref rbacv1.RoleRef) ([]rbacv1.PolicyRule, error) {
	// A missing role is reported under its own resource, not the binding's.
	about := func(resource string) context.Context {
		return genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{APIGroup: rbacv1.GroupName, APIVersion: "v1", Resource: resource})
	}
	switch ref.Kind {
	case "Role":
		obj, err := g.roles.Get(about("roles"), ref.Name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return obj.(*rbacv1.Role).Rules, nil
	case "ClusterRole":
		obj, err := g.clusterRoles.Get(genericapirequest.WithNamespace(about("clusterroles"), metav1.NamespaceNone), ref.Name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return obj.(*rbacv1.ClusterRole).Rules, nil
	}
	return nil, nil // validation refuses it
}

// may says whether the user is a cluster administrator by certificate or holds
// verb on the role.
func (g *guard) may(ctx context.Context, verb, roles, name string) bool {
	u, ok := genericapirequest.UserFrom(ctx)
	if !ok {
		return false
	}
	if slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
		return true
	}
	a := resource(roles)
	a.User, a.Verb, a.Name = u, verb, name
	if ns, ok := genericapirequest.NamespaceFrom(ctx); ok {
		a.Namespace = ns
	}
	decision, _, err := g.cfg.Authorizer.Authorize(ctx, a)
	return err == nil && decision == authorizer.DecisionAllow
}

// holds returns what the user lacks of rules, as an error.
func (g *guard) holds(ctx context.Context, rules []rbacv1.PolicyRule) error {
	u, ok := genericapirequest.UserFrom(ctx)
	if !ok {
		return errors.New("no user on context")
	}
	own, err := g.cfg.Holdings.PolicyRules(u, genericapirequest.NamespaceValue(ctx))
	covered, missing := validation.Covers(own, rules)
	if covered {
		return nil
	}
	msg := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		u.GetName(), u.GetGroups(), strings.Join(compact(missing), "\n"))
	if err != nil {
		msg += fmt.Sprintf("; resolution errors: %v", err)
	}
	return errors.New(msg)
}

func forbidden(kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return apierrors.NewForbidden(rbacv1.SchemeGroupVersion.WithResource(kind).GroupResource(), name, err)
}

// compact writes rules of one verb each as few lines: verbs of the same target
// come together.
func compact(rules []rbacv1.PolicyRule) []string {
	verbs := map[string][]string{}
	for _, r := range rules {
		var parts []string
		for _, f := range []struct {
			name   string
			values []string
		}{{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}} {
			if len(f.values) > 0 {
				parts = append(parts, fmt.Sprintf("%s:%q", f.name, f.values))
			}
		}
		target := strings.Join(parts, ", ")
		for _, v := range r.Verbs {
			if !slices.Contains(verbs[target], v) {
				verbs[target] = append(verbs[target], v)
			}
		}
	}
	var out []string
	for target, v := range verbs {
		out = append(out, fmt.Sprintf("{%s, Verbs:%q}", target, v))
	}
	sort.Strings(out)
	return out
}

// onlyGarbageFields says that an update changes nothing but owners and
// finalizers, which the garbage collector must be able to do.
func onlyGarbageFields[T runtime.Object](obj, old T, m func(T) *metav1.ObjectMeta) bool {
	c := obj.DeepCopyObject().(T)
	now, was := m(c), m(old)
	now.OwnerReferences, now.Finalizers, now.ManagedFields = was.OwnerReferences, was.Finalizers, was.ManagedFields
	now.ResourceVersion = was.ResourceVersion
	return registry.SemanticEqual(c, old)
}
