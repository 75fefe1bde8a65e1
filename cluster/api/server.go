// Package api is the Kubernetes API: the API library's generic server with the
// registries of this project in it and custom resources behind them.
//
// What it leaves out on purpose: audit, tracing, priority and fairness (a limit
// on concurrent requests is always on), API aggregation, admission webhooks and
// policies, conversion webhooks that name a service.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	apiopenapi "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	basecompatibility "k8s.io/component-base/compatibility"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-sh/skiff/cluster/admission"
	"github.com/skiff-sh/skiff/cluster/api/openapi"
	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/apiregistration"
	"github.com/skiff-sh/skiff/cluster/registry/coordination"
	"github.com/skiff-sh/skiff/cluster/registry/core"
	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
	"github.com/skiff-sh/skiff/cluster/registry/scheme"
)

// Server is the API server of one member.
type Server struct {
	cfg       Config
	generic   *genericapiserver.GenericAPIServer
	crds      *crds
	documents *lazyOpenAPI
	models    *lazyTypes
	services  *apiregistration.APIServices
	loopback  *rest.Config
	local     *loopback
	nodes     nodeproxy.NodeAccess
	informers informers.SharedInformerFactory
	complete  chan struct{} // closed when all paths are known
	ready     chan struct{}
}

// authorizerAndRules is the authorizer with the part that lists a user's rules.
type authorizerAndRules struct {
	authorizer.Authorizer
	authorizer.RuleResolver
}

// New assembles the server and starts nothing.
func New(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, complete: make(chan struct{}), ready: make(chan struct{}), local: &loopback{}}
	s.loopback = &rest.Config{Host: "https://skiff.loopback", BearerToken: uuid.NewString(), QPS: -1, Transport: s.local}
	internal, err := scheme.New()
	if err != nil {
		return nil, fmt.Errorf("scheme: %w", err)
	}
	if err := addDefaults(internal); err != nil {
		return nil, err
	}
	codecs := serializer.NewCodecFactory(internal,
		serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf())
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	s.informers = informers.NewSharedInformerFactory(client, 0)
	objects := &auth.StorageObjects{Fresh: c.Fresh}
	a, err := s.access(objects)
	if err != nil {
		return nil, err
	}
	g, err := s.genericConfig(codecs, a)
	if err != nil {
		return nil, err
	}
	if g.AdmissionControl, err = admission.New(objects, admission.Config{PodEvictionTimeout: c.PodEvictionTimeout}); err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	options := registry.Options{Scheme: internal, RESTOptions: protobufOptions(c.Backend, internal, codecs)}
	g.RESTOptionsGetter = options.RESTOptions
	if s.crds, err = newCRDs(g, c.Backend); err != nil {
		return nil, err
	}
	if s.generic, err = g.Complete().New("skiff", s.crds.GenericAPIServer); err != nil {
		return nil, fmt.Errorf("generic API server: %w", err)
	}
	if err := s.installGroups(options, codecs, g, a, objects, client); err != nil {
		return nil, err
	}
	if err := s.installPaths(g, a); err != nil {
		return nil, err
	}
	s.generic.PrepareRun()
	s.local.serve(s.generic.Handler)
	return s, nil
}

// Nodes is the way to the API of nodes.
func (s *Server) Nodes() nodeproxy.NodeAccess { return s.nodes }

// installGroups builds the storage of every built-in kind and serves it.
func (s *Server) installGroups(o registry.Options, codecs serializer.CodecFactory, g *genericapiserver.RecommendedConfig,
	a access, objects *auth.StorageObjects, client kubernetes.Interface) error {
	var err error
	s.nodes, err = nodeproxy.NewAccess(nodeproxy.AccessConfig{Node: objects.Node, TLS: s.cfg.NodeTLS})
	if err != nil {
		return err
	}
	served, err := groups(o, core.Config{
		ServiceCIDR: s.cfg.ServiceCIDR, Reservations: s.cfg.Reservations, Logger: s.cfg.Logger,
		Pods: core.PodConfig{Nodes: s.nodes, Client: client, Authorizer: a.authorizer},
	}, coordination.Config{Gossip: s.cfg.Gossip}, a)
	if err != nil {
		return err
	}
	s.services = apiregistration.New()
	served = append(served, Group{GroupVersion: apiregistrationv1.SchemeGroupVersion, Storage: s.services.NewStorage()})
	s.models = &lazyTypes{config: g.OpenAPIV3Config}
	in := installer{server: s.generic, scheme: o.Scheme, codecs: codecs, admit: g.AdmissionControl, models: s.models, limit: maxBodyBytes}
	for _, group := range served {
		objects.Bind(group.Storage)
	}
	for _, group := range served {
		if err := in.install(group); err != nil {
			return err
		}
		s.services.Builtin(group.GroupVersion)
	}
	return nil
}

// installPaths serves what is no group: OpenAPI, the plain list of groups, the
// documents of the token issuer, and the paths of the Config.
func (s *Server) installPaths(g *genericapiserver.RecommendedConfig, a access) error {
	s.documents = &lazyOpenAPI{server: s.generic, v2: g.OpenAPIConfig, v3: g.OpenAPIV3Config, crds: s.crds}
	s.documents.install(s.generic.Handler.NonGoRestfulMux)
	if err := s.crds.publishGroups(s.generic.DiscoveryGroupManager, s.services); err != nil {
		return err
	}
	issuer, err := a.tokens.IssuerDiscovery("https://" + s.cfg.ExternalAddress)
	if err != nil {
		return fmt.Errorf("token issuer documents: %w", err)
	}
	for _, handlers := range []map[string]http.Handler{issuer, s.cfg.Handlers} {
		for path, h := range handlers {
			if strings.HasSuffix(path, "/") {
				s.generic.Handler.NonGoRestfulMux.HandlePrefix(path, h)
			} else {
				s.generic.Handler.NonGoRestfulMux.Handle(path, h)
			}
		}
	}
	return nil
}

// client is a client of this server, in this process.
func (s *Server) client() (kubernetes.Interface, error) {
	c := rest.CopyConfig(s.loopback)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = c.ContentType + ",application/json"
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("loopback client: %w", err)
	}
	return client, nil
}

// access makes authentication and authorization.
func (s *Server) access(objects *auth.StorageObjects) (access, error) {
	issuer := "https://kubernetes.default.svc." + s.cfg.ClusterDomain
	tokens, err := auth.NewTokens(s.cfg.TokenKey, issuer, []string{issuer}, objects)
	if err != nil {
		return access{}, fmt.Errorf("service account tokens: %w", err)
	}
	rbac, err := auth.NewRBAC(s.informers)
	if err != nil {
		return access{}, fmt.Errorf("rbac: %w", err)
	}
	authz, err := auth.NewAuthorizer(auth.NewNode(objects), rbac)
	if err != nil {
		return access{}, fmt.Errorf("authorizer: %w", err)
	}
	return access{tokens: tokens, authenticators: auth.NewAuthenticators(tokens, s.cfg.CheckCertificate, s.cfg.TrustedCA),
		authorizer: authorizerAndRules{authz, rbac}, holdings: rbac}, nil
}

func (s *Server) genericConfig(codecs serializer.CodecFactory, a access) (*genericapiserver.RecommendedConfig, error) {
	external, err := scheme.NewExternal()
	if err != nil {
		return nil, fmt.Errorf("scheme for OpenAPI: %w", err)
	}
	g := genericapiserver.NewRecommendedConfig(codecs)
	g.EffectiveVersion = basecompatibility.NewEffectiveVersionFromString(apiVersion, "1.36", "1.36")
	g.ExternalAddress = s.cfg.ExternalAddress
	g.LoopbackClientConfig = s.loopback
	g.Authentication.Authenticator = a.authenticators.Request
	g.Authentication.APIAudiences = a.tokens.Audiences()
	g.Authorization.Authorizer = a.authorizer.Authorizer
	g.RuleResolver = a.authorizer.RuleResolver
	g.LongRunningFunc = longRunning(s.cfg.LongPaths...)
	g.BuildHandlerChainFunc = chain(s.complete, s.cfg)
	g.MaxRequestsInFlight, g.MaxMutatingRequestsInFlight = s.cfg.MaxReads, s.cfg.MaxWrites
	g.RequestTimeout = s.cfg.RequestTimeout
	g.MinRequestTimeout = int(minWatchTime / time.Second)
	g.EnableProfiling = s.cfg.Profiling
	g.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	g.StorageObjectCountTracker = nil
	// It keeps figures for priority and fairness, once a second.
	g.DisabledPostStartHooks = sets.NewString("max-in-flight-filter")
	g.SkipOpenAPIInstallation = true // see lazyOpenAPI
	namer := apiopenapi.NewDefinitionNamer(external, apiextensions.Scheme)
	g.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	g.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	g.OpenAPIConfig.Info.Title, g.OpenAPIV3Config.Info.Title = "Kubernetes", "Kubernetes"
	g.ReadyzChecks = append(g.ReadyzChecks, healthz.NamedCheck("skiff", func(*http.Request) error {
		select {
		case <-s.ready:
			return nil
		default:
			return errors.New("not started")
		}
	}))
	if s.cfg.Writable != nil {
		g.ReadyzChecks = append(g.ReadyzChecks, healthz.NamedCheck("leader", func(*http.Request) error { return s.cfg.Writable() }))
	}
	return g, nil
}

// LoopbackClientConfig reaches this server in its own process with full rights.
func (s *Server) LoopbackClientConfig() *rest.Config { return rest.CopyConfig(s.loopback) }

// Ready is closed when every stored kind is served and authorization knows the
// stored rules. It needs a log that can be read.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, then lets requests under way finish for a moment.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s.documents.run(ctx)
	defer s.generic.Destroy()
	g.Go(func() error { return s.serve(ctx) })
	g.Go(func() error { _, err := s.models.get(); return err })
	g.Go(func() error { return s.start(ctx) })
	return g.Wait()
}

// start starts what works beside the handlers, and waits until everything is
// known that requests depend on.
func (s *Server) start(ctx context.Context) error {
	s.informers.StartWithContext(ctx)
	// The library's hooks come second: they look for the definitions of custom
	// resources only ten times a second.
	if err := s.crds.run(ctx); err != nil {
		return nil // stopped meanwhile
	}
	s.generic.RunPostStartHooks(ctx)
	if s.informers.WaitForCacheSyncWithContext(ctx).Err != nil {
		return nil
	}
	if !s.awaitHooks(ctx) {
		return nil
	}
	close(s.complete)
	close(s.ready)
	return nil
}

// hookStep is how often start looks whether the library's hooks are through,
// which takes them a few milliseconds; they do not tell.
const hookStep = time.Millisecond

// awaitHooks returns true when all hooks are through.
func (s *Server) awaitHooks(ctx context.Context) bool {
	for _, check := range s.generic.HealthzChecks() {
		for strings.HasPrefix(check.Name(), "poststarthook/") && check.Check(nil) != nil {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(hookStep):
			}
		}
	}
	return true
}

const (
	idleTimeout   = 3 * time.Minute
	headerTimeout = 32 * time.Second // upstream's
	shutdownGrace = 2 * time.Second
	flushTime     = 50 * time.Millisecond
)

func (s *Server) serve(ctx context.Context) error {
	tlsConfig := s.cfg.ServingTLS.Clone()
	tlsConfig.NextProtos = []string{"h2", "http/1.1"}
	server := &http.Server{
		Handler: s.generic.Handler, TLSConfig: tlsConfig,
		IdleTimeout: idleTimeout, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: 1 << 20,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 256 << 10 * 25},
		ErrorLog: quietLog(s.cfg.Logger),
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(s.cfg.Listener, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the API on %s: %w", s.cfg.Listener.Addr(), err)
	case <-ctx.Done():
	}
	// Who works for this server in its process is asked to stop too; a client that
	// was told to come back later would make it wait.
	s.local.serve(nil)
	s.drain(server)
	<-done
	return nil
}

// drain lets requests under way finish, but for watches and other long ones,
// which would never; they go on at another server or after the restart.
func (s *Server) drain(server *http.Server) {
	grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.generic.NonLongRunningRequestWaitGroup.Wait()
	}()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		_ = server.Shutdown(grace) // tells clients to go away
	}()
	select {
	case <-idle:
	case <-grace.Done():
	case <-drained:
		select { // what the last handlers have written is still on its way
		case <-idle:
		case <-time.After(flushTime):
		}
	}
	_ = server.Close()
	cancel()
	<-idle
}
