package api

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/apps"
	"github.com/skiff-sh/skiff/cluster/registry/coordination"
	"github.com/skiff-sh/skiff/cluster/registry/core"
	"github.com/skiff-sh/skiff/cluster/registry/discovery"
	"github.com/skiff-sh/skiff/cluster/registry/events"
	"github.com/skiff-sh/skiff/cluster/registry/metrics"
	"github.com/skiff-sh/skiff/cluster/registry/node"
	"github.com/skiff-sh/skiff/cluster/registry/policy"
	"github.com/skiff-sh/skiff/cluster/registry/rbac"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

// addDefaults registers the defaulting functions of every served kind.
func addDefaults(s *runtime.Scheme) error {
	for _, add := range []func(*runtime.Scheme) error{
		core.AddDefaults, apps.AddDefaults, coordination.AddDefaults, discovery.AddDefaults,
		events.AddDefaults, node.AddDefaults, policy.AddDefaults, rbac.AddDefaults, storageapi.AddDefaults,
	} {
		if err := add(s); err != nil {
			return fmt.Errorf("register defaults: %w", err)
		}
	}
	return nil
}

// access is what the groups of access reviews answer from.
type access struct {
	tokens         *auth.Tokens
	authenticators auth.Authenticators
	authorizer     authorizerAndRules
	holdings       rbac.Holdings
}

// groups builds the storage of everything but custom resources.
func groups(o registry.Options, c core.Config, leases coordination.Config, a access) ([]Group, error) {
	c.ServiceAccountToken = a.tokens.TokenRequest()
	stored, err := core.NewStorage(o, c)
	if err != nil {
		return nil, fmt.Errorf("storage of the core group: %w", err)
	}
	made := []struct {
		gv    Group
		build func() (map[string]rest.Storage, error)
	}{
		{Group{GroupVersion: corev1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) { return stored, nil }},
		{Group{GroupVersion: appsv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) { return apps.NewStorage(o, apps.Config{}) }},
		{Group{GroupVersion: authenticationv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return auth.AuthenticationStorage(a.authenticators.Token, a.tokens.Audiences()), nil
		}},
		{Group{GroupVersion: authorizationv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return auth.AuthorizationStorage(a.authorizer, a.authorizer), nil
		}},
		{Group{GroupVersion: coordinationv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return coordination.NewStorage(o, leases)
		}},
		{Group{GroupVersion: discoveryv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return discovery.NewStorage(o, discovery.Config{})
		}},
		{Group{GroupVersion: eventsv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) { return events.NewStorage(o, events.Config{}) }},
		{Group{GroupVersion: nodev1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) { return node.NewStorage(o, node.Config{}) }},
		{Group{GroupVersion: policyv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) { return policy.NewStorage(o, policy.Config{}) }},
		{Group{GroupVersion: rbacv1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return rbac.NewStorage(o, rbac.Config{Holdings: a.holdings, Authorizer: a.authorizer})
		}},
		{Group{GroupVersion: metricsv1beta1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			nodes, _ := stored["nodes"].(metrics.Reader)
			pods, _ := stored["pods"].(metrics.Reader)
			return metrics.NewStorage(metrics.Config{Nodes: nodes, Pods: pods, Access: c.Pods.Nodes, Logger: c.Logger})
		}},
		{Group{GroupVersion: storagev1.SchemeGroupVersion}, func() (map[string]rest.Storage, error) {
			return storageapi.NewStorage(o, storageapi.Config{})
		}},
	}
	out := make([]Group, 0, len(made))
	for _, m := range made {
		s, err := m.build()
		if err != nil {
			return nil, fmt.Errorf("storage of %s: %w", m.gv.GroupVersion, err)
		}
		m.gv.Storage = s
		out = append(out, m.gv)
	}
	return out, nil
}
