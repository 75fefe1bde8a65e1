package api

import (
	"context"
	"fmt"
	"net/url"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	crdlisters "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/registry/apiregistration"
	"github.com/skiff-sh/skiff/cluster/storage"
)

// crdHooks are started by crds.run instead: the library's versions poll, and
// end the process when they are stopped early.
var crdHooks = []string{"start-apiextensions-informers", "crd-informer-synced"}

// crds serves CustomResourceDefinitions and what they define. It is asked for
// every path that the built-in groups do not know.
type crds struct {
	*apiextensions.CustomResourceDefinitions
	lister crdlisters.CustomResourceDefinitionLister
}

func newCRDs(outer *genericapiserver.RecommendedConfig, b *storage.Backend) (*crds, error) {
	g := *outer
	g.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	g.DisabledPostStartHooks = sets.NewString(outer.DisabledPostStartHooks.List()...).Insert(crdHooks...)
	g.RESTOptionsGetter = fixedOptions(b, apiextensions.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion), apiextensionsv1.SchemeGroupVersion)
	g.MergedResourceConfig = apiextensions.DefaultAPIResourceConfigSource()
	g.SharedInformerFactory = nil
	g.SkipOpenAPIInstallation = true
	config := apiextensions.Config{
		GenericConfig: &g,
		ExtraConfig: apiextensions.ExtraConfig{
			CRDRESTOptionsGetter: fixedOptions(b, unstructured.UnstructuredJSONScheme, apiextensionsv1.SchemeGroupVersion),
			MasterCount:          1,
			ServiceResolver:      noWebhooks{},
			AuthResolverWrapper:  func(r webhook.AuthenticationInfoResolver) webhook.AuthenticationInfoResolver { return r },
		},
	}
	s, err := config.Complete().New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	return &crds{s, s.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister()}, nil
}

// noWebhooks refuses conversion webhooks that name a service.
type noWebhooks struct{}

// ResolveEndpoint implements webhook.ServiceResolver.
func (noWebhooks) ResolveEndpoint(namespace, name string, _ int32) (*url.URL, error) {
	return nil, fmt.Errorf("conversion webhook at service %s/%s: only webhooks with a url are supported", namespace, name)
}

// run starts the informer and returns when every stored definition is known.
func (c *crds) run(ctx context.Context) error {
	informer := c.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer()
	c.Informers.Start(ctx.Done())
	if !cache.WaitFor(ctx, "", informer.HasSyncedChecker()) {
		return ctx.Err()
	}
	return nil
}

// publishGroups keeps the groups of custom resources, and that of their
// definitions, in the plain form of /apis; the library does so only for the
// aggregated form. Services gets them too.
func (c *crds) publishGroups(m discovery.GroupManager, services *apiregistration.APIServices) error {
	own := metav1.GroupVersionForDiscovery{GroupVersion: apiextensionsv1.SchemeGroupVersion.String(), Version: apiextensionsv1.SchemeGroupVersion.Version}
	m.AddGroup(metav1.APIGroup{Name: apiextensionsv1.GroupName, Versions: []metav1.GroupVersionForDiscovery{own}, PreferredVersion: own})
	services.Builtin(apiextensionsv1.SchemeGroupVersion)
	p := &groupPublisher{lister: c.lister, manager: m, services: services, known: map[string]bool{}}
	_, err := c.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { p.update(obj) },
		UpdateFunc: func(_, obj any) { p.update(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			p.update(obj)
		},
	})
	if err != nil {
		return fmt.Errorf("watch custom resource definitions: %w", err)
	}
	return nil
}

type groupPublisher struct {
	lister   crdlisters.CustomResourceDefinitionLister
	manager  discovery.GroupManager
	services *apiregistration.APIServices

	mu    sync.Mutex
	known map[string]bool
}

func (p *groupPublisher) update(obj any) {
	crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	group := crd.Spec.Group
	versions := p.versions(group)
	names := make([]string, 0, len(versions))
	for _, v := range versions {
		names = append(names, v.Version)
	}
	p.services.Custom(group, names)
	switch {
	case len(versions) > 0:
		p.known[group] = true
		p.manager.AddGroup(metav1.APIGroup{Name: group, Versions: versions, PreferredVersion: versions[0]})
	case p.known[group]:
		delete(p.known, group)
		p.manager.RemoveGroup(group)
	}
}

// versions are the served versions of a group, the preferred one first.
func (p *groupPublisher) versions(group string) []metav1.GroupVersionForDiscovery {
	all, err := p.lister.List(labels.Everything())
	if err != nil {
		return nil
	}
	found := sets.New[string]()
	for _, crd := range all {
		if crd.Spec.Group != group || !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served {
				found.Insert(v.Name)
			}
		}
	}
	var out []metav1.GroupVersionForDiscovery
	for _, v := range sortedVersions(found) {
		out = append(out, metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + v, Version: v})
	}
	return out
}

// sortedVersions puts stable versions first, and newer ones before older.
func sortedVersions(s sets.Set[string]) []string {
	out := s.UnsortedList()
	for i := 1; i < len(out); i++ {
		for j := i; j > 0 && version.CompareKubeAwareVersionStrings(out[j], out[j-1]) > 0; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}
