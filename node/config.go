package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/imagegc"
	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/shutdown"
)

// Network gives pods their addresses; netproxy/podnet implements it.
type Network = pod.Network

// Images is what the agent needs of an *image.Store.
type Images interface {
	pod.Images
	List() ([]*image.Image, error)
}

// Config configures an Agent.
type Config struct {
	Name       string       // of the Node object
	RESTConfig *rest.Config // with the client identity system:node:NAME

	// TLS of the node's HTTPS API: HTTP/1.1 only, with client certificates that are
	// verified if given. GetConfigForClient lets both change without a restart.
	TLS        *tls.Config
	ListenAddr string // ":10250" when empty

	DataDir  string // <data-dir>/node
	StateDir string // /run/skiff/<id>; what need not survive a reboot
	LogDir   string // of containers; DataDir/logs when empty

	// LocalPathDir is where the volumes of the local-path provisioner lie;
	// DataDir/../storage when empty.
	LocalPathDir string

	NodeIP        netip.Addr // InternalIP of the node
	ExternalIP    netip.Addr // optional
	ClusterDNS    netip.Addr // default: what Network.DNS says
	ClusterDomain string     // default: what Network.DNS says
	ResolvConf    string     // of the host; /etc/resolv.conf when empty

	// ManifestDir is the folder of static pods; "": there are none. PreparePod adds
	// defaults to a pod and checks it, as the API does; needed with ManifestDir.
	ManifestDir string
	PreparePod  func(*v1.Pod) error

	// Shutdown is the time that pods get when the machine is shut down.
	Shutdown shutdown.Periods

	// Contact says what is known of the cluster while no server answers. With it the
	// agent holds a lease, and stops pods of StatefulSets when it has lost it for
	// longer than they tolerate. Nil, for a node that needs no fence: it never does.
	Contact func() Contact

	Labels  map[string]string
	Taints  []v1.Taint // put on the Node when it registers first
	MaxPods int        // 110 when 0

	// Reserved is kept back from pods: cpu, memory, ephemeral-storage and ResourcePID.
	Reserved v1.ResourceList
	// Eviction are the thresholds at which room is made; kubelet's defaults when nil.
	Eviction *eviction.Config
	ImageGC  imagegc.Policy // imagegc.Default when zero

	LogMaxSize  int64 // bytes at which a container's log is rotated; logs.MaxSize when 0
	LogMaxFiles int   // of each container, at least 2; logs.MaxFiles when 0
	PodPids     int64 // processes that a pod may have; 0: no limit

	Sysctls        pod.Sysctls // beyond the safe ones
	SeccompDefault bool        // containers that name no seccomp profile have RuntimeDefault

	Collectors []prometheus.Collector // of others on this host, for /metrics

	Network Network
	Runtime pod.Runtime // pod.Wrap(*runtime.Runtime)
	Images  Images      // *image.Store

	Version        string // kubeletVersion: v1.37.x+skiff.N
	RuntimeVersion string // X of skiff://X; Version when empty

	Logger *slog.Logger
}

func (c *Config) complete() error {
	var errs []error
	need := func(ok bool, field string) {
		if !ok {
			errs = append(errs, fmt.Errorf("node: Config.%s is required", field))
		}
	}
	if msgs := validation.IsDNS1123Subdomain(c.Name); len(msgs) > 0 {
		errs = append(errs, fmt.Errorf("node name %q: %s", c.Name, msgs[0]))
	}
	need(c.RESTConfig != nil, "RESTConfig")
	need(c.TLS != nil, "TLS")
	need(c.DataDir != "", "DataDir")
	need(c.StateDir != "", "StateDir")
	need(c.NodeIP.IsValid(), "NodeIP")
	need(c.Network != nil, "Network")
	need(c.Runtime != nil, "Runtime")
	need(c.Images != nil, "Images")
	need(c.Version != "", "Version")
	need(c.ManifestDir == "" || c.PreparePod != nil, "PreparePod")
	need(c.Logger != nil, "Logger")
	if c.MaxPods < 0 {
		errs = append(errs, fmt.Errorf("node: max pods %d is negative", c.MaxPods))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if c.ListenAddr == "" {
		c.ListenAddr = ":10250"
	}
	if c.LogDir == "" {
		c.LogDir = filepath.Join(c.DataDir, "logs")
	}
	if c.LocalPathDir == "" {
		c.LocalPathDir = filepath.Join(filepath.Dir(c.DataDir), "storage")
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.Eviction == nil {
		d := eviction.Default()
		c.Eviction = &d
	}
	if c.ImageGC == (imagegc.Policy{}) {
		c.ImageGC = imagegc.Default
	}
	if c.LogMaxSize == 0 {
		c.LogMaxSize = logs.MaxSize
	}
	if c.LogMaxFiles == 0 {
		c.LogMaxFiles = logs.MaxFiles
	}
	if c.RuntimeVersion == "" {
		c.RuntimeVersion = c.Version
	}
	return nil
}
