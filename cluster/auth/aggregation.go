package auth

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/tools/cache"
)

// Aggregation fills the rules of ClusterRoles that have an aggregationRule
// with the rules of the roles it selects. A leader duty.
type Aggregation struct {
	client kubernetes.Interface
	lister rbaclisters.ClusterRoleLister
	synced cache.InformerSynced
	wake   chan struct{}
	log    *slog.Logger
}

// NewAggregation registers its informer with f; the caller starts f.
func NewAggregation(client kubernetes.Interface, f informers.SharedInformerFactory, log *slog.Logger) (*Aggregation, error) {
	i := f.Rbac().V1().ClusterRoles()
	a := &Aggregation{client: client, lister: i.Lister(), synced: i.Informer().HasSynced, wake: make(chan struct{}, 1), log: log}
	wake := func() {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	_, err := i.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { wake() }, UpdateFunc: func(any, any) { wake() }, DeleteFunc: func(any) { wake() }})
	if err != nil {
		return nil, fmt.Errorf("watch cluster roles: %w", err)
	}
	return a, nil
}

// Run recomputes all aggregated roles after each change until ctx ends.
func (a *Aggregation) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), a.synced) {
		return ctx.Err()
	}
	for {
		a.pass(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		}
	}
}

func (a *Aggregation) pass(ctx context.Context) {
	roles, err := a.lister.List(labels.Everything())
	if err != nil {
		a.log.Error("list cluster roles", "error", err)
		return
	}
	for _, r := range roles {
		if r.AggregationRule == nil {
			continue
		}
		rules, err := aggregate(r, roles)
		if err != nil {
			a.log.Warn("aggregate cluster role", "role", r.Name, "error", err)
			continue
		}
		if equality.Semantic.DeepEqual(rules, r.Rules) {
			continue
		}
		c := r.DeepCopy()
		c.Rules = rules
		if _, err := a.client.RbacV1().ClusterRoles().Update(ctx, c, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && ctx.Err() == nil {
			// A conflict means that a newer object is on its way to us.
			a.log.Warn("write aggregated cluster role", "role", r.Name, "error", err)
		}
	}
}

// aggregate joins the rules of all roles that r selects, in order of their
// names, without duplicates.
func aggregate(r *rbacv1.ClusterRole, roles []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	sorted := slices.Clone(roles)
	slices.SortFunc(sorted, func(x, y *rbacv1.ClusterRole) int { return strings.Compare(x.Name, y.Name) })
	var out []rbacv1.PolicyRule
	for i := range r.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&r.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("aggregationRule.clusterRoleSelectors[%d]: %w", i, err)
		}
		for _, x := range sorted {
			if x.Name == r.Name || !sel.Matches(labels.Set(x.Labels)) {
				continue
			}
			for _, p := range x.Rules {
				if !slices.ContainsFunc(out, func(q rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(p, q) }) {
					out = append(out, p)
				}
			}
		}
	}
	return out, nil
}
