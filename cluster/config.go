package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/upgrade"
)

// Default ports.
const (
	DefaultPort       = 6443
	DefaultRaftPort   = 6444
	DefaultGossipPort = 6445
)

// Config of a Server. Only DataDir, Name, AdvertiseAddress and Logger have no
// default.
type Config struct {
	// Name of this server's host in the cluster.
	Name string
	// DataDir holds raft/, pki/, node-id and admin.kubeconfig.
	DataDir string
	// Lock of DataDir if the caller holds it already.
	Lock *consensus.DirLock

	// BindAddress is where both ports listen; default all addresses.
	BindAddress netip.Addr
	// Port of the API, RaftPort of the servers among themselves, GossipPort (UDP
	// and TCP) of all members.
	Port, RaftPort, GossipPort uint16
	// NodePort is where the node on this host serves its own API; 0 if it runs no
	// pods. Others are told.
	NodePort uint16
	// Role is server (the default) or witness, which leads only while no other
	// server can.
	Role membership.Role
	// AdvertiseAddress is where others reach this server.
	AdvertiseAddress netip.Addr
	// ServerNames are further DNS names and addresses of the API, for its
	// certificate.
	ServerNames []string

	// ClusterCIDR is where pods, ServiceCIDR where services get their addresses;
	// defaults 10.42.0.0/16 and 10.43.0.0/16.
	ClusterCIDR, ServiceCIDR netip.Prefix
	// ClusterDomain is the DNS domain of services; default cluster.local. These
	// three are given up for those of the cluster where it has told them (see
	// Settings).
	ClusterDomain string
	// PodEvictionTimeout is how long pods stay bound to a node that is lost, unless
	// they say otherwise; 0 is no time at all. Given, it becomes that of the whole
	// cluster; nil is what the cluster has, at first DefaultPodEvictionTimeout.
	PodEvictionTimeout *time.Duration

	// Passphrase of the keys in DataDir; nil: they have none.
	Passphrase []byte

	// Snapshots that are saved by themselves; nil: none.
	Snapshots *Snapshots

	// Programs is where this server keeps the programs of roll-outs; nil: nowhere,
	// and it takes none.
	Programs upgrade.Binaries

	// Version of skiff, as the status shows it.
	Version string
	// Profiling serves /debug/pprof on the API port to those who may read it.
	Profiling bool
	// Listen replaces net.Listen, for tests.
	Listen func(network, address string) (net.Listener, error)
	// GossipTiming replaces production values, for tests.
	GossipTiming gossip.Timing

	Logger *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.Name == "":
		return errors.New("server: Name is missing")
	case c.DataDir == "":
		return errors.New("server: DataDir is missing")
	case c.Logger == nil:
		return errors.New("server: Logger is missing")
	case !c.AdvertiseAddress.IsValid() || c.AdvertiseAddress.IsUnspecified():
		return errors.New("server: AdvertiseAddress must be an address of this host")
	}
	if !c.BindAddress.IsValid() {
		c.BindAddress = netip.IPv4Unspecified()
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.RaftPort == 0 {
		c.RaftPort = DefaultRaftPort
	}
	if c.GossipPort == 0 {
		c.GossipPort = DefaultGossipPort
	}
	if c.Role == "" {
		c.Role = membership.RoleServer
	}
	if !c.Role.Votes() {
		return fmt.Errorf("server: Role is %s, want server or witness", c.Role)
	}
	if c.PodEvictionTimeout != nil && *c.PodEvictionTimeout < 0 {
		return fmt.Errorf("server: PodEvictionTimeout %s is negative", *c.PodEvictionTimeout)
	}
	if !c.ClusterCIDR.IsValid() {
		c.ClusterCIDR = netip.MustParsePrefix("10.42.0.0/16")
	}
	if !c.ServiceCIDR.IsValid() {
		c.ServiceCIDR = netip.MustParsePrefix("10.43.0.0/16")
	}
	if c.ClusterCIDR.Overlaps(c.ServiceCIDR) {
		return fmt.Errorf("server: pod addresses %s and service addresses %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	}
	if !c.ServiceCIDR.Addr().Is4() || c.ServiceCIDR.Bits() > 28 {
		return fmt.Errorf("server: service addresses %s must be IPv4 with room for 16 or more", c.ServiceCIDR)
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.Snapshots != nil && c.Snapshots.Dir == "" {
		own := *c.Snapshots
		own.Dir = filepath.Join(c.DataDir, "snapshots")
		c.Snapshots = &own
	}
	if c.Listen == nil {
		c.Listen = net.Listen
	}
	return nil
}

// serviceAddress is the nth address for services: 1 is the API, 10 is DNS.
func (c *Config) serviceAddress(n int) netip.Addr {
	a := c.ServiceCIDR.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func hostPort(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}
