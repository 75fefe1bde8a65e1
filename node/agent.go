package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/objects"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/shutdown"
	"github.com/skiff-sh/skiff/node/static"
	"github.com/skiff-sh/skiff/node/stream"
	"github.com/skiff-sh/skiff/node/volume"
)

// Agent runs the pods of one node and keeps its Node object.
type Agent struct {
	cfg    Config
	client kubernetes.Interface
	ready  chan struct{}
	once   sync.Once

	machine  machine // what does not change while the agent runs
	services *services
	self     *self
	pods     *pod.Manager
	volumes  *volume.Manager
	local    *volume.Local
	meter    *meter.Meter
	fence    *fence // nil: pods never have to stop for lack of contact

	manifests *static.Folder // nil: there are no static pods
	mirrors   *static.Mirrors
	shutdown  *shutdown.Watcher

	sources   eviction.Sources
	evictable evictable                              // pods
	evicting  map[types.UID]int64                    // grace periods, of pods that keepFree has evicted
	pressed   atomic.Pointer[[]v1.NodeConditionType] // what new pods are refused for
	housework sync.Mutex                             // one removes images at a time
	gcFailed  bool                                   // of keepImages
}

// New validates the configuration and starts nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	rc := rest.CopyConfig(cfg.RESTConfig)
	rc.QPS = -1 // requests follow changes, and those must not wait
	if rc.ContentType == "" {
		rc.ContentType = "application/vnd.kubernetes.protobuf"
		rc.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("making the node's API client: %w", err)
	}
	a := &Agent{cfg: cfg, client: client, ready: make(chan struct{}), meter: meter.New(cfg.Name), evicting: map[types.UID]int64{}}
	if a.machine, err = lookAtMachine(cfg); err != nil {
		return nil, fmt.Errorf("looking at this machine: %w", err)
	}
	return a, nil
}

// Ready is closed once the Node object says Ready.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run registers the node and runs its pods until ctx ends. Pods go on running
// when it returns; a later agent adopts them.
func (a *Agent) Run(ctx context.Context) error {
	listener, err := net.Listen("tcp", a.cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("node API: %w", err)
	}
	defer listener.Close()
	for _, dir := range []string{a.cfg.DataDir, a.cfg.LogDir, filepath.Join(a.cfg.DataDir, "pods"), filepath.Join(a.cfg.StateDir, "volumes")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("node directories: %w", err)
		}
	}
	if a.local, err = volume.NewLocal(a.cfg.LocalPathDir, a.cfg.Logger); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)

	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: a.client.CoreV1().Events("")})
	recorder := broadcaster.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: a.cfg.Name})

	source := objects.New(objects.Config{Client: a.client, Logger: a.cfg.Logger})
	defer source.Close()
	a.services = newServices(a.client, a.cfg.Logger)
	a.self = newSelf(a, recorder)
	if a.cfg.Contact != nil {
		a.fence = newFence(a.cfg, a.renewLease, func() { a.pods.Poke() })
	}
	if err := a.readManifests(recorder); err != nil {
		return err
	}
	a.shutdown = a.watchShutdown()
	a.pods = pod.NewManager(a.podConfig(source, recorder))
	a.evictable = a.pods
	a.sources = eviction.Sources{NodeDir: a.cfg.DataDir, ImageDir: a.imageDir(), Pods: podsMemory(a.cfg.Runtime)}

	if a.fence != nil {
		g.Go(func() error { a.fence.run(ctx); return nil })
	}
	g.Go(func() error { a.enforce(ctx); return nil })
	g.Go(func() error { a.services.run(ctx); return nil })
	g.Go(func() error { return a.self.run(ctx) })
	if err := a.runManifests(ctx, g); err != nil {
		g.Go(func() error { return err })
	}
	g.Go(func() error { return a.runPods(ctx) })
	g.Go(func() error { return a.keepHouse(ctx) })
	g.Go(func() error { return a.runShutdown(ctx) })
	server := stream.New(stream.Config{Pods: a.pods, TLS: a.cfg.TLS, Client: a.client, NodeName: a.cfg.Name,
		Images: a.cfg.Images, Volumes: a.volumes, DataDir: a.cfg.DataDir, ImageDir: a.imageDir(), Meter: a.meter,
		Collectors: a.cfg.Collectors, AllPods: allPods(a.cfg.Runtime), Logger: a.cfg.Logger})
	g.Go(func() error { return server.Serve(ctx, listener) })
	err = g.Wait()
	a.pods.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// renewLease asks any server to renew this node's lease.
func (a *Agent) renewLease(ctx context.Context) ([]byte, error) {
	return a.client.Discovery().RESTClient().Put().AbsPath(leasePath).MaxRetries(0).DoRaw(ctx)
}

func (a *Agent) podConfig(source *objects.Source, recorder record.EventRecorder) pod.Config {
	c := a.cfg
	dns := pod.DNS{}
	dns.Server, dns.Domain = c.Network.DNS()
	if c.ClusterDNS.IsValid() {
		dns.Server = c.ClusterDNS
	}
	if c.ClusterDomain != "" {
		dns.Domain = c.ClusterDomain
	}
	memory := a.machine.capacity.Memory().Value()
	a.volumes = volume.New(volume.Config{Root: filepath.Join(c.DataDir, "pods"), MemRoot: filepath.Join(c.StateDir, "volumes"),
		Objects: source, Tokens: volume.APITokens{Client: a.client},
		Claims: source, Volumes: volume.APIVolumes{Client: a.client}, Node: a.self.node, Local: a.local,
		MemoryAllocatable: a.machine.allocatable.Memory().Value(), Recorder: recorder, Logger: c.Logger})
	pc := pod.Config{
		NodeName: c.Name, HostIPs: []string{c.NodeIP.Unmap().String()}, Client: a.client,
		Runtime: c.Runtime, Images: c.Images, Network: c.Network,
		Volumes: a.volumes,
		Objects: source, Services: a.services.list, Node: a.self.node, Recorder: recorder,
		DataDir: c.DataDir, LogDir: c.LogDir, ResolvConf: c.ResolvConf, DNS: dns,
		Allocatable: a.machine.allocatable, MemoryCapacity: memory, Logger: c.Logger,
		PidsPerPod: c.PodPids, Pressure: a.pressure, Sysctls: c.Sysctls, SeccompDefault: c.SeccompDefault, Meter: a.meter,
		KeepStatic: a.keepStatic, StaticChanged: a.mirrors.Poke, Closing: a.isClosing,
	}
	if a.fence != nil {
		pc.Permit, pc.FenceFile = a.fence.permit, a.fence.path
	}
	return pc
}

// pressure is what the node is short of, for those who decide whether to take a pod.
func (a *Agent) pressure() []v1.NodeConditionType {
	if p := a.pressed.Load(); p != nil {
		return *p
	}
	return nil
}

// allPods reads the counters of all pods together; nil where the runtime has none.
func allPods(r pod.Runtime) func() (runtime.Stats, error) {
	if all, ok := r.(interface{ AllStats() (runtime.Stats, error) }); ok {
		return all.AllStats
	}
	return nil
}
