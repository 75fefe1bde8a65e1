package api

import (
	"fmt"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	openapibuilder3 "k8s.io/kube-openapi/pkg/builder3"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// Group is one served group version.
type Group struct {
	schema.GroupVersion
	// Storage has the resources and subresources by discovery name.
	Storage map[string]rest.Storage
}

// installer adds groups to a server. It does what the library's
// InstallAPIGroups does, but for the OpenAPI models that server-side apply
// needs: they are built in the background, once for all groups.
type installer struct {
	server *genericapiserver.GenericAPIServer
	scheme *runtime.Scheme
	codecs serializer.CodecFactory
	admit  admission.Interface
	models *lazyTypes
	limit  int64 // request body bytes
}

func (i *installer) install(g Group) error {
	if len(g.Storage) == 0 {
		return nil
	}
	root := genericapiserver.APIGroupPrefix
	if g.Group == "" {
		root = genericapiserver.DefaultLegacyAPIPrefix
	}
	served := map[string][]string{}
	for resource := range g.Storage {
		served[resource] = []string{g.GroupVersion.String()}
	}
	v := &endpoints.APIGroupVersion{
		Storage: g.Storage, Root: root, GroupVersion: g.GroupVersion,
		AllServedVersionsByResource: served,
		OptionsExternalVersion:      &schema.GroupVersion{Version: "v1"},
		Serializer:                  i.codecs, ParameterCodec: runtime.NewParameterCodec(i.scheme),
		Typer: i.scheme, Creater: i.scheme, Convertor: i.scheme, ConvertabilityChecker: i.scheme,
		UnsafeConvertor: runtime.UnsafeObjectConvertor(i.scheme), Defaulter: i.scheme,
		Namer:                      runtime.Namer(meta.NewAccessor()),
		TypeConverter:              i.models,
		EquivalentResourceRegistry: i.server.EquivalentResourceRegistry,
		Authorizer:                 i.server.Authorizer,
		Admit:                      i.admit,
		MinRequestTimeout:          minWatchTime,
		MaxRequestBodyBytes:        i.limit,
	}
	resources, _, err := v.InstallREST(i.server.Handler.GoRestfulContainer)
	if err != nil {
		return fmt.Errorf("install %s: %w", g.GroupVersion, err)
	}
	if err := i.models.add(g, i.scheme); err != nil {
		return err
	}
	found := apidiscoveryv2.APIVersionDiscovery{Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: g.Version, Resources: resources}
	if g.Group == "" {
		i.server.AggregatedLegacyDiscoveryGroupManager.AddGroupVersion("", found)
		i.legacyRoot()
		return nil
	}
	i.server.AggregatedDiscoveryGroupManager.AddGroupVersion(g.Group, found)
	gv := metav1.GroupVersionForDiscovery{GroupVersion: g.GroupVersion.String(), Version: g.Version}
	group := metav1.APIGroup{Name: g.Group, Versions: []metav1.GroupVersionForDiscovery{gv}, PreferredVersion: gv}
	i.server.DiscoveryGroupManager.AddGroup(group)
	i.server.Handler.GoRestfulContainer.Add(discovery.NewAPIGroupHandler(i.codecs, group).WebService())
	return nil
}

// legacyRoot serves /api.
func (i *installer) legacyRoot() {
	m := i.server.AggregatedLegacyDiscoveryGroupManager
	root := discovery.NewLegacyRootAPIHandler(discovery.DefaultAddresses{DefaultAddress: i.server.ExternalAddress}, i.codecs, genericapiserver.DefaultLegacyAPIPrefix)
	i.server.Handler.GoRestfulContainer.Add(
		aggregated.WrapAggregatedDiscoveryToHandler(root, m, m).GenerateWebService(genericapiserver.DefaultLegacyAPIPrefix, metav1.APIVersions{}))
}

// lazyTypes knows the structure of the served types, which writes need to keep
// managedFields. Building it takes long enough to be noticed at start, so it is
// done beside everything else; the first write waits for it.
type lazyTypes struct {
	config *openapicommon.OpenAPIV3Config
	names  []string

	once      sync.Once
	converter managedfields.TypeConverter
	err       error
}

var _ managedfields.TypeConverter = (*lazyTypes)(nil)

func (l *lazyTypes) add(g Group, scheme *runtime.Scheme) error {
	for resource, s := range g.Storage {
		kind, err := endpoints.GetResourceKind(g.GroupVersion, s, scheme)
		if err != nil {
			return fmt.Errorf("kind of %s in %s: %w", resource, g.GroupVersion, err)
		}
		sample, err := scheme.New(kind)
		if err != nil {
			return fmt.Errorf("kind of %s in %s: %w", resource, g.GroupVersion, err)
		}
		l.names = append(l.names, openapiutil.GetCanonicalTypeName(sample))
	}
	return nil
}

func (l *lazyTypes) get() (managedfields.TypeConverter, error) {
	l.once.Do(func() {
		building.Lock()
		defer building.Unlock()
		spec, err := openapibuilder3.BuildOpenAPIDefinitionsForResources(l.config, l.names...)
		if err != nil {
			l.err = fmt.Errorf("describe the served types: %w", err)
			return
		}
		l.converter, l.err = managedfields.NewTypeConverter(spec, false)
	})
	return l.converter, l.err
}

// ObjectToTyped implements managedfields.TypeConverter.
func (l *lazyTypes) ObjectToTyped(obj runtime.Object, o ...typed.ValidationOptions) (*typed.TypedValue, error) {
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	return c.ObjectToTyped(obj, o...)
}

// TypedToObject implements managedfields.TypeConverter.
func (l *lazyTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	return c.TypedToObject(v)
}
