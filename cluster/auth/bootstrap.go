package auth

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
)

// Reconcile brings the default roles and bindings up to date: missing ones are
// created, missing permissions and subjects added, and what users added is
// kept. Objects whose annotation rbac.authorization.kubernetes.io/autoupdate
// is "false" are left alone. It writes nothing when nothing is missing.
func Reconcile(ctx context.Context, client kubernetes.Interface) error {
	existing, err := client.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list cluster roles: %w", err)
	}
	have := map[string]bool{}
	for _, r := range existing.Items {
		have[r.Name] = true
	}
	var errs []error
	for _, r := range ClusterRoles() {
		if !have[r.Name] {
			_, err := client.RbacV1().ClusterRoles().Create(ctx, r, metav1.CreateOptions{})
			if err == nil {
				continue
			}
			if !apierrors.IsAlreadyExists(err) {
				errs = append(errs, fmt.Errorf("create cluster role %s: %w", r.Name, err))
				continue
			}
		}
		o := reconciliation.ReconcileRoleOptions{
			Role:    reconciliation.ClusterRoleRuleOwner{ClusterRole: r},
			Client:  reconciliation.ClusterRoleModifier{Client: client.RbacV1().ClusterRoles()},
			Confirm: true,
		}
		if _, err := o.Run(); err != nil {
			errs = append(errs, fmt.Errorf("reconcile cluster role %s: %w", r.Name, err))
		}
	}
	for _, b := range ClusterRoleBindings() {
		o := reconciliation.ReconcileRoleBindingOptions{
			RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: b},
			Client:      reconciliation.ClusterRoleBindingClientAdapter{Client: client.RbacV1().ClusterRoleBindings()},
			Confirm:     true,
		}
		if _, err := o.Run(); err != nil {
			errs = append(errs, fmt.Errorf("reconcile cluster role binding %s: %w", b.Name, err))
		}
	}
	for _, r := range Roles() {
		o := reconciliation.ReconcileRoleOptions{
			Role:    reconciliation.RoleRuleOwner{Role: r},
			Client:  reconciliation.RoleModifier{Client: client.RbacV1(), NamespaceClient: client.CoreV1().Namespaces()},
			Confirm: true,
		}
		if _, err := o.Run(); err != nil {
			errs = append(errs, fmt.Errorf("reconcile role %s/%s: %w", r.Namespace, r.Name, err))
		}
	}
	return errors.Join(errs...)
}
