package netproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
)

// DefaultTableName is the nftables table (family ip) that holds every rule of
// skiff.
const DefaultTableName = "skiff"

// Config says who this node is and which address ranges the cluster uses.
type Config struct {
	// Client reads Services, EndpointSlices and Nodes. Give it the Protobuf
	// content type: the informers hold every Service of the cluster.
	Client kubernetes.Interface

	NodeName string
	// NodeIP is this node's InternalIP: the source address of connections
	// that this host opens to pods. A loopback address works for a single
	// node; pods then see the first address of the pod range instead.
	NodeIP netip.Addr

	ClusterCIDR   netip.Prefix
	ServiceCIDR   netip.Prefix
	ClusterDomain string // default cluster.local

	// DNSAddr is the cluster DNS address, inside ServiceCIDR. The server on
	// this node answers it; default is the tenth address of ServiceCIDR.
	DNSAddr netip.Addr
	// UpstreamResolvConf names the resolvers for names outside of the
	// cluster; default /etc/resolv.conf.
	UpstreamResolvConf string

	// ListenDNS opens the UDP and the TCP socket of cluster DNS, for sockets
	// that outlive this process; nil opens plain ones.
	ListenDNS func(ctx context.Context, addr string) (net.PacketConn, net.Listener, error)

	// DataDir is skiff's data directory; leases are kept in
	// DataDir/node/network.
	DataDir string
	// TableName is the nftables table; default "skiff".
	TableName string

	Logger *slog.Logger
}

// withDefaults returns the config with defaults filled in, or says which field
// is wrong.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	need := func(ok bool, field, why string) {
		if !ok {
			errs = append(errs, fmt.Errorf("netproxy: %s %s", field, why))
		}
	}
	need(c.Client != nil, "Client", "is required")
	need(c.NodeName != "", "NodeName", "is required")
	need(c.NodeIP.Is4() && !c.NodeIP.IsUnspecified(), "NodeIP", "must be an IPv4 address")
	need(c.ClusterCIDR.IsValid() && c.ClusterCIDR.Addr().Is4(), "ClusterCIDR", "must be an IPv4 range")
	need(c.ServiceCIDR.IsValid() && c.ServiceCIDR.Addr().Is4(), "ServiceCIDR", "must be an IPv4 range")
	need(c.DataDir != "", "DataDir", "is required")
	if len(errs) > 0 {
		return c, errors.Join(errs...)
	}
	c.ClusterCIDR, c.ServiceCIDR = c.ClusterCIDR.Masked(), c.ServiceCIDR.Masked()
	need(!c.ClusterCIDR.Overlaps(c.ServiceCIDR), "ClusterCIDR", "overlaps ServiceCIDR")
	need(c.ServiceCIDR.Bits() <= 28, "ServiceCIDR", "must be at least a /28")
	need(c.ClusterCIDR.Bits() <= 28, "ClusterCIDR", "must be at least a /28")
	if !c.DNSAddr.IsValid() && len(errs) == 0 {
		c.DNSAddr = nthAddr(c.ServiceCIDR, 10)
	}
	need(c.ServiceCIDR.Contains(c.DNSAddr), "DNSAddr", "must lie inside ServiceCIDR")
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.UpstreamResolvConf == "" {
		c.UpstreamResolvConf = "/etc/resolv.conf"
	}
	if c.TableName == "" {
		c.TableName = DefaultTableName
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(errs...)
}

func (c Config) networkDir() string { return filepath.Join(c.DataDir, "node", "network") }

// nthAddr returns the n-th address after the first of p.
func nthAddr(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}
