package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	componentversion "k8s.io/component-base/version"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/netproxy"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	"github.com/skiff-sh/skiff/node"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/image/demo"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// nodePart is what makes a host a node: containers, their network, the service
// proxy and DNS.
type nodePart struct {
	node     *node.Agent
	proxy    *netproxy.Proxy
	images   *image.Store
	loaded   chan struct{} // closed when the built-in images and those of imageDir are in the store
	imageDir string
	o        hostOptions
}

// access is how a node reaches its cluster, and how it is reached.
type access struct {
	api      *rest.Config // as the node
	tls      *tls.Config  // of the node's own API
	settings membership.Settings
	contact  func() node.Contact
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

// serverAccess reaches the API of server in this process, as the node: it may do
// what a node on another host may do, and show that it is a server's.
func serverAccess(server *cluster.Server, o serverOptions) access {
	c := server.LoopbackClientConfig()
	c.Impersonate = rest.ImpersonationConfig{UserName: nodeUser(o.name), Groups: []string{nodesGroup, auth.ServersGroup, "system:authenticated"}}
	asNode(c)
	return access{api: c, tls: server.NodeTLS(), settings: server.Settings(),
		contact: func() node.Contact { return node.Contact(server.Contact()) }}
}

const nodesGroup = "system:nodes"

func nodeUser(name string) string { return "system:node:" + name }

func asNode(c *rest.Config) {
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.UserAgent = "skiff-node"
}

func newNodePart(o hostOptions, to access) (_ *nodePart, err error) {
	listen := netip.AddrPortFrom(o.bind, o.nodePort).String()
	if err := checkPort(listen); err != nil {
		return nil, fmt.Errorf("open the port of the node's API: %w", err)
	}
	nodeDir := filepath.Join(o.dataDir, "node")
	if err := os.MkdirAll(nodeDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if o.podLogDir != "" {
		if err := os.MkdirAll(o.podLogDir, 0o755); err != nil {
			return nil, fmt.Errorf("directory of the pods' logs: %w; choose another with --pod-log-dir", err)
		}
	}
	state, err := stateDir(o.dataDir)
	if err != nil {
		return nil, err
	}
	if err := makeStateDir(state); err != nil {
		return nil, err
	}
	a := &nodePart{o: o, imageDir: o.imageDir, loaded: make(chan struct{})}
	if a.imageDir == "" {
		a.imageDir = filepath.Join(o.dataDir, "images")
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
	client, err := kubernetes.NewForConfig(to.api)
	if err != nil {
		return nil, fmt.Errorf("client of the API: %w", err)
	}
	set := to.settings
	a.proxy, err = netproxy.New(netproxy.Config{
		Client: client, NodeName: o.name, NodeIP: o.advertise, ClusterCIDR: set.ClusterCIDR, ServiceCIDR: set.ServiceCIDR,
		ClusterDomain: set.ClusterDomain, UpstreamResolvConf: o.resolvConf, ListenDNS: containers.Listen, DataDir: o.dataDir, Logger: o.logger.With("component", "network"),
	})
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	a.node, err = node.New(node.Config{
		Name: o.name, RESTConfig: to.api, TLS: to.tls, Contact: to.contact,
		ListenAddr: listen, DataDir: nodeDir, StateDir: state, NodeIP: o.advertise,
		ClusterDomain: set.ClusterDomain, ResolvConf: o.resolvConf, Labels: o.labels, Taints: o.taints, MaxPods: o.maxPods,
		Reserved: o.reserved, Eviction: &o.house.eviction, ImageGC: o.house.imageGC, LogDir: o.podLogDir, LogMaxSize: o.house.logMaxSize, LogMaxFiles: o.house.logMaxFiles, PodPids: o.house.podPids, LocalPathDir: o.localPathDir, Sysctls: o.sysctls, SeccompDefault: o.seccompDefault,
		ManifestDir: o.manifests, PreparePod: preparePod, Shutdown: o.shutdown,
		Collectors: []prometheus.Collector{a.proxy.Collector()},
		Network:    podNetwork{a.proxy.Network()}, Runtime: pod.Wrap(containers), Images: images{a.images, a.loaded},
		Version: componentversion.Get().GitVersion, RuntimeVersion: version, Logger: o.logger.With("component", "node"),
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// checkPort finds out early that another program has the port, or that this host
// does not have the address. The node opens it when it begins.
func checkPort(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
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

// readyPatience is how long a node waits for the API before it begins without
// it. Beginning too early only means trying again.
const readyPatience = 3 * time.Second

// run works until ctx ends. Pods, rules and mounts stay. Without a server it does
// what can be done: pods that run are watched over, services and DNS stay as they
// are.
func (a *nodePart) run(ctx context.Context, apiReady <-chan struct{}) (err error) {
	defer func() { err = errors.Join(err, a.images.Close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.loadImages(ctx) })
	select {
	case <-apiReady:
	case <-time.After(readyPatience):
		a.o.logger.Warn("no server answers yet: pods that run go on, and this node keeps trying")
	case <-ctx.Done():
		return g.Wait()
	}
	g.Go(func() error { return a.o.unlessMoved(ctx, a.proxy.Run(ctx)) })
	g.Go(func() error { return a.node.Run(ctx) })
	return g.Wait()
}

// sayReady logs that the node is ready.
func (a *nodePart) sayReady(ctx context.Context, started time.Time) {
	select {
	case <-a.node.Ready():
		a.o.logger.Info("the node is ready", "node", a.o.name, "after", time.Since(started).Round(time.Millisecond))
	case <-ctx.Done():
	}
}

// loadImages brings in the demo images and the archives in the image folder. A
// bad archive is reported and left; it does not keep the node down.
func (a *nodePart) loadImages(ctx context.Context) error {
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
