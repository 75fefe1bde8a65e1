package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/cluster/controller"
	"github.com/skiff-sh/skiff/cluster/controller/daemonset"
	"github.com/skiff-sh/skiff/cluster/controller/deployment"
	"github.com/skiff-sh/skiff/cluster/controller/disruption"
	"github.com/skiff-sh/skiff/cluster/controller/endpointslice"
	"github.com/skiff-sh/skiff/cluster/controller/ephemeralvolume"
	"github.com/skiff-sh/skiff/cluster/controller/garbagecollector"
	"github.com/skiff-sh/skiff/cluster/controller/localpath"
	"github.com/skiff-sh/skiff/cluster/controller/namespace"
	"github.com/skiff-sh/skiff/cluster/controller/nodeipam"
	"github.com/skiff-sh/skiff/cluster/controller/nodelifecycle"
	"github.com/skiff-sh/skiff/cluster/controller/persistentvolume"
	"github.com/skiff-sh/skiff/cluster/controller/podgc"
	"github.com/skiff-sh/skiff/cluster/controller/replicaset"
	"github.com/skiff-sh/skiff/cluster/controller/rootca"
	"github.com/skiff-sh/skiff/cluster/controller/serviceaccount"
	"github.com/skiff-sh/skiff/cluster/controller/statefulset"
	"github.com/skiff-sh/skiff/cluster/controller/volumeprotection"
	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/scheduler"
)

// DutiesConfig is what the controllers and the scheduler need from the server.
type DutiesConfig struct {
	// API reaches the local API server with full rights. Its rate limits are
	// ignored: the server protects itself.
	API *rest.Config
	// ClusterCIDR is where nodes get their pod addresses from.
	ClusterCIDR netip.Prefix
	// CA gives the cluster's CA certificates in PEM, which are published to every
	// namespace; CAChanges gives a channel that is poked when they change, nil:
	// they never do.
	CA        func() []byte
	CAChanges func() (poked <-chan struct{}, cancel func())
	// Gossip says which nodes are alive, Leases what they may run. Without both,
	// as in tests of the rest, every node is believed to be alive.
	Gossip nodehealth.Gossip
	Leases *nodehealth.Leases
	// Volumes deletes the folders of local-path volumes; nil: none are made, as in
	// tests of the rest.
	Volumes localpath.Nodes
	// Evictions shows whether pods of lost nodes are evicted; nil is allowed.
	Evictions *nodelifecycle.Board
	// Logger receives what is no Event.
	Logger *slog.Logger
}

// Duties returns a LeaderConfig.Term that makes every controller and the
// scheduler anew, on informers that live as long as the term.
func Duties(cfg DutiesConfig) (func() ([]Duty, error), error) {
	switch {
	case cfg.API == nil:
		return nil, errors.New("duties: API is missing")
	case !cfg.ClusterCIDR.IsValid():
		return nil, errors.New("duties: ClusterCIDR is missing")
	case cfg.CA == nil:
		return nil, errors.New("duties: CA is missing")
	case cfg.Logger == nil:
		return nil, errors.New("duties: Logger is missing")
	}
	api := rest.CopyConfig(cfg.API)
	api.QPS, api.Burst, api.RateLimiter = -1, 0, nil
	api.UserAgent = "skiff-controllers"
	meta, err := metadata.NewForConfig(api)
	if err != nil {
		return nil, fmt.Errorf("metadata client for duties: %w", err)
	}
	typed := rest.CopyConfig(api)
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	typed.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(typed)
	if err != nil {
		return nil, fmt.Errorf("client for duties: %w", err)
	}
	return func() ([]Duty, error) {
		return newTerm(cfg, client, meta).duties()
	}, nil
}

// term collects the duties of one term.
type term struct {
	cfg      DutiesConfig
	client   kubernetes.Interface
	metadata metadata.Interface
	shared   informers.SharedInformerFactory
	events   record.EventBroadcaster
	list     []Duty
	errs     []error
}

func newTerm(cfg DutiesConfig, client kubernetes.Interface, meta metadata.Interface) *term {
	return &term{
		cfg: cfg, client: client, metadata: meta,
		shared: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(dropManagedFields)),
		events: record.NewBroadcaster(),
	}
}

// duties makes them all. The informers come last: they start what the
// constructors before have registered.
func (t *term) duties() ([]Duty, error) {
	add(t, "replicaset", "replicaset-controller", replicaset.New)
	add(t, "replicationcontroller", "replication-controller", replicaset.NewForReplicationControllers)
	add(t, "deployment", "deployment-controller", deployment.New)
	add(t, "daemonset", "daemonset-controller", daemonset.New)
	add(t, "statefulset", "statefulset-controller", statefulset.New)
	add(t, "disruption", "controllermanager", disruption.New)
	add(t, "endpointslice", "endpoint-slice-controller", endpointslice.New)
	add(t, "namespace", "namespace-controller", func(c controller.Config) (*namespace.Controller, error) {
		return namespace.New(namespace.Config{Config: c, Discovery: t.client.Discovery(), Metadata: t.metadata})
	})
	add(t, "garbagecollector", "garbage-collector-controller", func(c controller.Config) (*garbagecollector.Controller, error) {
		return garbagecollector.New(garbagecollector.Config{
			Config: c, Discovery: t.client.Discovery(), Metadata: t.metadata, Shared: t.sharedKinds(),
		})
	})
	add(t, "serviceaccount", "serviceaccount-controller", serviceaccount.New)
	add(t, "rootca", "root-ca-certificate-publisher-controller", func(c controller.Config) (*rootca.Controller, error) {
		return rootca.New(rootca.Config{Config: c, CA: t.cfg.CA, Changes: t.cfg.CAChanges})
	})
	t.nodes()
	t.storage()
	add(t, "nodeipam", "cidrAllocator", func(c controller.Config) (*nodeipam.Controller, error) {
		return nodeipam.New(nodeipam.Config{Config: c, ClusterCIDR: t.cfg.ClusterCIDR})
	})
	add(t, "scheduler", scheduler.DefaultName, func(c controller.Config) (*scheduler.Scheduler, error) {
		return scheduler.New(scheduler.Config{
			Binder: scheduler.NewBinder(c.Client), Informers: c.Informers, Events: c.Events, Logger: c.Logger,
		})
	})
	if err := errors.Join(t.errs...); err != nil {
		t.events.Shutdown()
		return nil, err
	}
	t.list = append(t.list,
		Duty{Name: "events", Run: t.recordEvents},
		Duty{Name: "informers", Run: t.runInformers})
	return t.list, nil
}

// nodes makes the duties that deal with lost nodes.
func (t *term) nodes() {
	leases := t.cfg.Leases
	add(t, "nodelifecycle", "node-controller", func(c controller.Config) (*nodelifecycle.Controller, error) {
		n := nodelifecycle.Config{Config: c, Board: t.cfg.Evictions}
		if leases != nil {
			n.Freeze = leases.Freeze
		}
		return nodelifecycle.New(n)
	})
	add(t, "podgc", "pod-garbage-collector-controller", func(c controller.Config) (*podgc.Controller, error) {
		p := podgc.Config{Config: c}
		if leases != nil {
			p.Leases = leases
		}
		return podgc.New(p)
	})
	if t.cfg.Gossip != nil {
		add(t, "nodehealth", "node-controller", func(c controller.Config) (*nodehealth.Controller, error) {
			return nodehealth.New(nodehealth.Config{Config: c, Gossip: t.cfg.Gossip, Leases: leases})
		})
	}
	if leases != nil {
		t.list = append(t.list, Duty{Name: "leases", Run: leases.Run})
	}
}

// storage makes the duties that deal with volumes.
func (t *term) storage() {
	add(t, "persistentvolume", "persistentvolume-controller", persistentvolume.New)
	add(t, "volumeprotection", "volume-protection-controller", volumeprotection.New)
	add(t, "ephemeralvolume", "ephemeral_volume", ephemeralvolume.New)
	if t.cfg.Volumes != nil {
		add(t, "localpath", "skiff.sh/local-path", func(c controller.Config) (*localpath.Controller, error) {
			return localpath.New(localpath.Config{Config: c, Nodes: t.cfg.Volumes})
		})
	}
}

// sharedKinds are those that controllers cache in full anyway, so that the garbage
// collector does not cache them once more.
func (t *term) sharedKinds() map[schema.GroupVersionResource]cache.SharedIndexInformer {
	core, apps := t.shared.Core().V1(), t.shared.Apps().V1()
	v1 := corev1.SchemeGroupVersion
	return map[schema.GroupVersionResource]cache.SharedIndexInformer{
		v1.WithResource("pods"):                                          core.Pods().Informer(),
		v1.WithResource("services"):                                      core.Services().Informer(),
		v1.WithResource("endpoints"):                                     core.Endpoints().Informer(),
		v1.WithResource("persistentvolumes"):                             core.PersistentVolumes().Informer(),
		v1.WithResource("persistentvolumeclaims"):                        core.PersistentVolumeClaims().Informer(),
		v1.WithResource("nodes"):                                         core.Nodes().Informer(),
		v1.WithResource("namespaces"):                                    core.Namespaces().Informer(),
		v1.WithResource("serviceaccounts"):                               core.ServiceAccounts().Informer(),
		v1.WithResource("replicationcontrollers"):                        core.ReplicationControllers().Informer(),
		appsv1.SchemeGroupVersion.WithResource("deployments"):            apps.Deployments().Informer(),
		appsv1.SchemeGroupVersion.WithResource("replicasets"):            apps.ReplicaSets().Informer(),
		appsv1.SchemeGroupVersion.WithResource("daemonsets"):             apps.DaemonSets().Informer(),
		appsv1.SchemeGroupVersion.WithResource("controllerrevisions"):    apps.ControllerRevisions().Informer(),
		appsv1.SchemeGroupVersion.WithResource("statefulsets"):           apps.StatefulSets().Informer(),
		policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"): t.shared.Policy().V1().PodDisruptionBudgets().Informer(),
		storagev1.SchemeGroupVersion.WithResource("storageclasses"):      t.shared.Storage().V1().StorageClasses().Informer(),
		discoveryv1.SchemeGroupVersion.WithResource("endpointslices"):    t.shared.Discovery().V1().EndpointSlices().Informer(),
	}
}

// add makes one duty; source is the component that its events name, as upstream
// names it.
func add[T interface{ Run(context.Context) error }](t *term, name, source string, make func(controller.Config) (T, error)) {
	c, err := make(t.with(source))
	if err != nil {
		t.errs = append(t.errs, err)
		return
	}
	t.list = append(t.list, Duty{Name: name, Run: c.Run})
}

// with is the configuration of one controller, whose events come from source.
func (t *term) with(source string) controller.Config {
	return controller.Config{
		Client:    t.client,
		Informers: t.shared,
		Events:    t.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: source}),
		Logger:    t.cfg.Logger.With("source", source),
	}
}

func (t *term) recordEvents(ctx context.Context) error {
	t.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: t.client.CoreV1().Events("")})
	<-ctx.Done()
	t.events.Shutdown()
	return nil
}

func (t *term) runInformers(ctx context.Context) error {
	t.shared.StartWithContext(ctx)
	<-ctx.Done()
	t.shared.Shutdown()
	return nil
}

// dropManagedFields makes cached objects smaller; no controller reads them.
func dropManagedFields(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}
