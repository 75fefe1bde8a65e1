package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	componentversion "k8s.io/component-base/version"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/netproxy"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	"github.com/skiff-sh/skiff/node"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/image/demo"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// agent is what makes a host a node: containers, their network, the service
// proxy and DNS.
type agent struct {
	node     *node.Agent
	proxy    *netproxy.Proxy
	images   *image.Store
	loaded   chan struct{} // closed when the built-in images and those of imageDir are in the store
	imageDir string
	o        options
}

// images makes pods wait for images that are just being loaded, in place of
// asking a registry for them.
type images struct {
	*image.Store
	loaded <-chan struct{}
}

// Pull fetches ref, unless it was missing and has come with the images that
// are loaded at start.
func (s images) Pull(ctx context.Context, ref string, auth authn.Keychain, progress image.ProgressFunc) (*image.Image, error) {
	_, had := s.Get(ref)
	select {
	case <-s.loaded:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if i, ok := s.Get(ref); ok && !had {
		return i, nil
	}
	return s.Store.Pull(ctx, ref, auth, progress)
}

// nodeClient reaches the API of server in this process, as the node: it may do
// what a node on another host may do.
func nodeClient(server *cluster.Server, name string) *rest.Config {
	c := server.LoopbackClientConfig()
	c.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + name, Groups: []string{"system:nodes", "system:authenticated"}}
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.UserAgent = "skiff-node"
	return c
}

func newAgent(server *cluster.Server, o options) (_ *agent, err error) {
	c := o.cluster
	nodeDir := filepath.Join(c.DataDir, "node")
	if err := os.MkdirAll(nodeDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	state, err := stateDir(c.DataDir)
	if err != nil {
		return nil, err
	}
	if err := makeStateDir(state); err != nil {
		return nil, err
	}
	a := &agent{o: o, imageDir: o.imageDir, loaded: make(chan struct{})}
	if a.imageDir == "" {
		a.imageDir = filepath.Join(c.DataDir, "images")
	}
	if a.images, err = image.Open(image.Config{Dir: filepath.Join(nodeDir, "images"), Registries: o.registries, Owner: true, Logger: o.logger}); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.images.Close())
		}
	}()
	containers, err := runtime.New(runtime.Config{StateDir: state, DataDir: nodeDir, CgroupRoot: cgroupRoot(state), Logger: o.logger})
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	api := nodeClient(server, c.Name)
	client, err := kubernetes.NewForConfig(api)
	if err != nil {
		return nil, fmt.Errorf("client of the API: %w", err)
	}
	a.proxy, err = netproxy.New(netproxy.Config{
		Client: client, NodeName: c.Name, NodeIP: c.AdvertiseAddress, ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR,
		ClusterDomain: c.ClusterDomain, UpstreamResolvConf: o.resolvConf, ListenDNS: containers.Listen, DataDir: c.DataDir, Logger: o.logger.With("component", "network"),
	})
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	serving, err := server.PKI().Leaf(pki.Request{CommonName: "system:node:" + c.Name, Organization: []string{"system:nodes"},
		DNSNames: []string{c.Name}, IPs: []net.IP{c.AdvertiseAddress.AsSlice(), net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		return nil, fmt.Errorf("certificate of the node: %w", err)
	}
	a.node, err = node.New(node.Config{
		Name: c.Name, RESTConfig: api, ServingCert: serving.ServerTLS().GetCertificate, ClientCAs: server.PKI().Pool(),
		ListenAddr: fmt.Sprintf(":%d", o.nodePort), DataDir: nodeDir, StateDir: state, NodeIP: c.AdvertiseAddress,
		ClusterDomain: c.ClusterDomain, ResolvConf: o.resolvConf, Labels: o.labels, Taints: o.taints, MaxPods: o.maxPods,
		Network: podNetwork{a.proxy.Network()}, Runtime: pod.Wrap(containers), Images: images{a.images, a.loaded},
		Version: componentversion.Get().GitVersion, RuntimeVersion: version, Logger: o.logger.With("component", "node"),
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// podNetwork fits netproxy's pod network to what the agent asks for.
type podNetwork struct{ *podnet.Network }

func (n podNetwork) HostPorts(ctx context.Context, podUID string, ports []pod.HostPort) error {
	out := make([]podnet.PortMapping, len(ports))
	for i, p := range ports {
		out[i] = podnet.PortMapping(p)
	}
	return n.Network.HostPorts(ctx, podUID, out)
}

// cgroupRoot keeps the cgroups of several instances on one machine apart.
func cgroupRoot(state string) string { return filepath.Join("skiff", filepath.Base(state)) }

// run works until ctx ends. Pods, rules and mounts stay.
func (a *agent) run(ctx context.Context, apiReady <-chan struct{}) (err error) {
	defer func() { err = errors.Join(err, a.images.Close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.loadImages(ctx) })
	select {
	case <-apiReady:
	case <-ctx.Done():
		return g.Wait()
	}
	g.Go(func() error { return a.proxy.Run(ctx) })
	g.Go(func() error { return a.node.Run(ctx) })
	return g.Wait()
}

// loadImages brings in the demo images and the archives in the image folder. A
// bad archive is reported and left; it does not keep the node down.
func (a *agent) loadImages(ctx context.Context) error {
	defer close(a.loaded)
	log := a.o.logger.With("component", "images")
	if err := demo.Ensure(ctx, a.images); err != nil && ctx.Err() == nil {
		log.Warn("the demo images are missing", "error", err)
	}
	if _, err := os.Stat(a.imageDir); errors.Is(err, fs.ErrNotExist) && a.o.imageDir == "" {
		return nil
	}
	images, err := a.images.ImportDir(ctx, a.imageDir, nil)
	for _, i := range images {
		log.Info("loaded image", "image", nameOf(i))
	}
	if err != nil && ctx.Err() == nil {
		log.Error("load the archives of the image folder", "folder", a.imageDir, "error", err)
	}
	return nil
}
