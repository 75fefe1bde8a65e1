// Package rbac serves the rbac.authorization.k8s.io group: Roles, ClusterRoles
// and their bindings. Nobody may grant through them what they do not hold
// themselves, unless they may escalate or bind the role.
package rbac

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
)

// Holdings says what users may do.
type Holdings interface {
	// PolicyRules gives the rules that u holds in namespace, or in the whole
	// cluster when namespace is empty. Rules come even with an error, which says
	// that there may be more.
	PolicyRules(u user.Info, namespace string) ([]rbacv1.PolicyRule, error)
}

// Config is what the group needs beyond registry.Options.
type Config struct {
	Holdings Holdings
	// Authorizer answers for the verbs escalate and bind.
	Authorizer authorizer.UnconditionalAuthorizer
}

// AddDefaults registers the defaulting functions of the group's kinds.
func AddDefaults(s *runtime.Scheme) error {
	s.AddTypeDefaultingFunc(&rbacv1.RoleBinding{}, func(obj any) {
		b := obj.(*rbacv1.RoleBinding)
		setBindingDefaults(&b.RoleRef, b.Subjects)
	})
	s.AddTypeDefaultingFunc(&rbacv1.ClusterRoleBinding{}, func(obj any) {
		b := obj.(*rbacv1.ClusterRoleBinding)
		setBindingDefaults(&b.RoleRef, b.Subjects)
	})
	return nil
}

func setBindingDefaults(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if ref.APIGroup == "" {
		ref.APIGroup = rbacv1.GroupName
	}
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

// NewStorage builds the storage of every resource and subresource of the
// group, by discovery name.
func NewStorage(o registry.Options, cfg Config) (map[string]rest.Storage, error) {
	if cfg.Holdings == nil || cfg.Authorizer == nil {
		return nil, errors.New("storage of rbac.authorization.k8s.io: Config.Holdings and Config.Authorizer are required")
	}
	g := &guard{cfg: cfg}
	m := map[string]rest.Storage{}
	for _, k := range []struct {
		kind  registry.Kind
		check checkFunc
		keep  **registry.Store
	}{
		{roleKind, g.role, &g.roles}, {clusterRoleKind, g.clusterRole, &g.clusterRoles},
		{roleBindingKind, g.roleBinding, nil}, {clusterRoleBindingKind, g.clusterRoleBinding, nil},
	} {
		s, err := k.kind.NewStore(o)
		if err != nil {
			return nil, err
		}
		if k.keep != nil {
			*k.keep = s
		}
		m[k.kind.Resource.Resource] = &guarded{s, k.check}
	}
	return m, nil
}

func base(resource string) registry.Kind {
	return registry.Kind{Resource: rbacv1.SchemeGroupVersion.WithResource(resource), Singular: strings.TrimSuffix(resource, "s"),
		ValidateName: segment}
}

var roleColumns = []metav1.TableColumnDefinition{
	registry.Column("Name", "Name of the role"),
	registry.Column("Created At", "When it was created"),
}

func createdAt(m metav1.ObjectMeta) string { return m.CreationTimestamp.UTC().Format(time.RFC3339) }

var bindingColumns = []metav1.TableColumnDefinition{
	registry.Column("Name", "Name of the binding"),
	registry.Column("Role", "The role it grants"),
	registry.Column("Age", "Time since creation"),
	registry.WideColumn("Users", "Users it grants the role to"),
	registry.WideColumn("Groups", "Groups it grants the role to"),
	registry.WideColumn("ServiceAccounts", "ServiceAccounts it grants the role to"),
}

func bindingRow(m metav1.ObjectMeta, ref rbacv1.RoleRef, subjects []rbacv1.Subject) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{m.Name, fmt.Sprintf("%s/%s", ref.Kind, ref.Name), registry.Age(m.CreationTimestamp),
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", ")}
}

var roleKind = func() registry.Kind {
	k := base("roles")
	k.Object, k.List, k.Columns = &rbacv1.Role{}, &rbacv1.RoleList{}, roleColumns
	k.Row = func(obj runtime.Object) []any {
		r := obj.(*rbacv1.Role)
		return []any{r.Name, createdAt(r.ObjectMeta)}
	}
	k.Validate = func(_ context.Context, obj runtime.Object) field.ErrorList {
		return validateRules(obj.(*rbacv1.Role).Rules, true)
	}
	k.ValidateUpdate = func(ctx context.Context, obj, _ runtime.Object) field.ErrorList { return k.Validate(ctx, obj) }
	return k
}()

var clusterRoleKind = func() registry.Kind {
	k := base("clusterroles")
	k.ClusterScoped = true
	k.Object, k.List, k.Columns = &rbacv1.ClusterRole{}, &rbacv1.ClusterRoleList{}, roleColumns
	k.Row = func(obj runtime.Object) []any {
		r := obj.(*rbacv1.ClusterRole)
		return []any{r.Name, createdAt(r.ObjectMeta)}
	}
	k.Validate = func(_ context.Context, obj runtime.Object) field.ErrorList {
		r := obj.(*rbacv1.ClusterRole)
		return append(validateRules(r.Rules, false), validateAggregation(r.AggregationRule)...)
	}
	k.ValidateUpdate = func(ctx context.Context, obj, _ runtime.Object) field.ErrorList { return k.Validate(ctx, obj) }
	return k
}()

var roleBindingKind = func() registry.Kind {
	k := base("rolebindings")
	k.Object, k.List, k.Columns = &rbacv1.RoleBinding{}, &rbacv1.RoleBindingList{}, bindingColumns
	k.Row = func(obj runtime.Object) []any {
		b := obj.(*rbacv1.RoleBinding)
		return bindingRow(b.ObjectMeta, b.RoleRef, b.Subjects)
	}
	k.Validate = func(_ context.Context, obj runtime.Object) field.ErrorList {
		b := obj.(*rbacv1.RoleBinding)
		return validateBinding(b.RoleRef, b.Subjects, true)
	}
	k.ValidateUpdate = func(ctx context.Context, obj, old runtime.Object) field.ErrorList {
		return append(k.Validate(ctx, obj), sameRoleRef(obj.(*rbacv1.RoleBinding).RoleRef, old.(*rbacv1.RoleBinding).RoleRef)...)
	}
	return k
}()

var clusterRoleBindingKind = func() registry.Kind {
	k := base("clusterrolebindings")
	k.ClusterScoped = true
	k.Object, k.List, k.Columns = &rbacv1.ClusterRoleBinding{}, &rbacv1.ClusterRoleBindingList{}, bindingColumns
	k.Row = func(obj runtime.Object) []any {
		b := obj.(*rbacv1.ClusterRoleBinding)
		return bindingRow(b.ObjectMeta, b.RoleRef, b.Subjects)
	}
	k.Validate = func(_ context.Context, obj runtime.Object) field.ErrorList {
		b := obj.(*rbacv1.ClusterRoleBinding)
		return validateBinding(b.RoleRef, b.Subjects, false)
	}
	k.ValidateUpdate = func(ctx context.Context, obj, old runtime.Object) field.ErrorList {
		return append(k.Validate(ctx, obj), sameRoleRef(obj.(*rbacv1.ClusterRoleBinding).RoleRef, old.(*rbacv1.ClusterRoleBinding).RoleRef)...)
	}
	return k
}()
