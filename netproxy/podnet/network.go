package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks skiff's routes.
const RouteProtocol netlink.RouteProtocol = 83

// AddrLabel marks skiff's addresses on lo.
const AddrLabel = "lo:skiff"

// Gateway is every pod's gateway.
var Gateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// Config of a Network.
type Config struct {
	NodeIP      netip.Addr
	ServiceCIDR netip.Prefix
	DNSAddr     netip.Addr
	Domain      string
	Dir         string // for leases
	Table       *ruleset.Table
	Logger      *slog.Logger
}

// HostAddr is the address by which pods see a node with the given address: its
// own, or the gateway's where that is a loopback address.
func HostAddr(nodeIP netip.Addr) netip.Addr {
	if nodeIP.IsLoopback() {
		return Gateway
	}
	return nodeIP
}

// Network attaches pods. Its methods may be called concurrently.
type Network struct {
	cfg  Config
	host *netlink.Handle

	mu     sync.Mutex // guards leases, ports, peers, known
	leases *leases
	ports  map[ruleset.Key]string // who holds a host port
	peers  []Peer
	known  bool // SetPeers has told who they are

	prepared chan struct{} // closed when the host is ready for pods
	ranged   chan struct{} // closed when the node's range is known
	busy     map[string]*sync.Mutex
	mtu      int

	removing    sync.Mutex // held while links are removed
	removeMu    sync.Mutex // guards nextRemoval
	nextRemoval *removal
}

// New makes a Network and reads the leases. It changes nothing.
func New(cfg Config) (*Network, error) {
	if cfg.Table == nil || cfg.Dir == "" || !cfg.NodeIP.Is4() {
		return nil, errors.New("netproxy/podnet: Table, Dir and an IPv4 NodeIP are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	le, err := openLeases(cfg.Dir)
	if errors.Is(err, errLeases) {
		cfg.Logger.Warn("the addresses of pods are read from the routes of their links", "error", err)
		le, err = recoverLeases(h, cfg.Dir)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	n := &Network{cfg: cfg, host: h, leases: le, ports: map[ruleset.Key]string{}, busy: map[string]*sync.Mutex{},
		prepared: make(chan struct{}), ranged: make(chan struct{})}
	for uid, l := range le.Pods {
		for _, p := range l.Ports {
			n.ports[p.key()] = uid
		}
	}
	if le.Range.IsValid() {
		close(n.ranged)
	}
	return n, nil
}

// Close frees what New opened. The network stays as it is.
func (n *Network) Close() { n.host.Close() }

// DNS returns what pods need to resolve names.
func (n *Network) DNS() (server netip.Addr, domain string) { return n.cfg.DNSAddr, n.cfg.Domain }

// PodCIDR returns the node's range; it is not valid while unknown.
func (n *Network) PodCIDR() netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leases.Range
}

// SetPodCIDR tells the node's range. Attach waits for the first call, unless
// the range is known from the last run.
func (n *Network) SetPodCIDR(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() {
		return fmt.Errorf("pod range %v: not IPv4", p)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leases.Range == p.Masked() {
		return nil
	}
	if n.leases.Range.IsValid() {
		n.cfg.Logger.Warn("pod range of this node changes; running pods keep their addresses", "from", n.leases.Range, "to", p)
	}
	n.leases.setRange(p)
	select {
	case <-n.ranged:
	default:
		close(n.ranged)
	}
	return n.leases.save()
}

// lock serializes the operations on one pod.
func (n *Network) lock(uid string) func() {
	n.mu.Lock()
	m := n.busy[uid]
	if m == nil {
		m = &sync.Mutex{}
		n.busy[uid] = m
	}
	n.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Attach connects the network namespace of a pod and returns the pod's
// addresses. Called again it repairs what is missing and returns the same.
func (n *Network) Attach(ctx context.Context, podUID, netnsPath string) ([]netip.Addr, error) {
	if podUID == "" {
		return nil, errors.New("attach pod: empty UID")
	}
	for _, ch := range []chan struct{}{n.prepared, n.ranged} {
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, fmt.Errorf("attach pod %s: the node has no pod range yet: %w", podUID, ctx.Err())
		}
	}
	defer n.lock(podUID)()
	n.mu.Lock()
	_, found := n.leases.found[LinkName(podUID)]
	stored := n.leases.Pods[podUID] != nil
	known := stored || found
	l, err := n.leases.take(podUID)
	if err == nil && !stored {
		err = n.leases.save()
	}
	n.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", podUID, err)
	}
	if err := n.connect(podUID, netnsPath, l.Addr, known); err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", podUID, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !l.inTable {
		u := &ruleset.Unit{}
		u.Hairpin(l.Addr.As4(), true)
		if err := n.cfg.Table.Apply([]*ruleset.Unit{u}); err != nil {
			return nil, fmt.Errorf("attach pod %s: %w", podUID, err)
		}
		l.inTable = true
	}
	return []netip.Addr{l.Addr}, nil
}

// Detach removes the pod's link and host ports and frees its address. A pod
// that is not attached is no error.
func (n *Network) Detach(_ context.Context, podUID string) error {
	unlock := n.lock(podUID)
	defer unlock()
	if err := n.removeLink(LinkName(podUID)); err != nil {
		return fmt.Errorf("detach pod %s: %w", podUID, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, podUID)
	l := n.leases.Pods[podUID]
	if l == nil {
		return nil
	}
	u := &ruleset.Unit{}
	if l.inTable {
		u.Hairpin(l.Addr.As4(), false)
	}
	n.changePorts(u, podUID, l, nil)
	if err := n.cfg.Table.Apply([]*ruleset.Unit{u}); err != nil {
		// The table may have been removed under us; what it holds is set
		// right by Resync.
		n.cfg.Logger.Warn("rules of a removed pod stay until the next sync", "pod", podUID, "error", err)
	}
	n.leases.release(podUID)
	if err := n.leases.save(); err != nil {
		return fmt.Errorf("detach pod %s: %w", podUID, err)
	}
	return nil
}

// Adopt is told after a start which pods are alive: what others left behind is
// removed.
func (n *Network) Adopt(ctx context.Context, alive []string) error {
	keep := map[string]bool{}
	for _, uid := range alive {
		keep[LinkName(uid)] = true
	}
	n.mu.Lock()
	maps.DeleteFunc(n.leases.found, func(link string, _ netip.Addr) bool { return !keep[link] })
	var gone []string
	for uid := range n.leases.Pods {
		if !slices.Contains(alive, uid) {
			gone = append(gone, uid)
		}
	}
	n.mu.Unlock()
	var errs []error
	links, err := podLinks(n.host)
	errs = append(errs, err)
	links = slices.DeleteFunc(links, func(l string) bool { return keep[l] })
	n.removing.Lock()
	errs = append(errs, n.removeLinks(links))
	n.removing.Unlock()
	for _, uid := range gone {
		errs = append(errs, n.Detach(ctx, uid))
	}
	return errors.Join(errs...)
}

// HostPorts publishes ports of an attached pod on the node, in place of those
// published before.
func (n *Network) HostPorts(_ context.Context, podUID string, ports []PortMapping) error {
	defer n.lock(podUID)()
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.leases.Pods[podUID]
	if l == nil {
		return fmt.Errorf("host ports of pod %s: not attached", podUID)
	}
	for _, p := range ports {
		if err := p.validate(); err != nil {
			return fmt.Errorf("host ports of pod %s: %w", podUID, err)
		}
		if holder, taken := n.ports[p.key()]; taken && holder != podUID {
			return fmt.Errorf("host ports of pod %s: port %d/%s is in use by pod %s", podUID, p.HostPort, p.protocol(), holder)
		}
	}
	u := &ruleset.Unit{}
	n.changePorts(u, podUID, l, ports)
	if err := n.cfg.Table.Apply([]*ruleset.Unit{u}); err != nil {
		return fmt.Errorf("host ports of pod %s: %w", podUID, err)
	}
	if err := n.leases.save(); err != nil {
		return fmt.Errorf("host ports of pod %s: %w", podUID, err)
	}
	return nil
}

func (n *Network) changePorts(u *ruleset.Unit, uid string, l *lease, ports []PortMapping) {
	next := map[ruleset.Key]ruleset.Endpoint{}
	for _, p := range ports {
		next[p.key()] = ruleset.Endpoint{Addr: l.Addr.As4(), Port: p.ContainerPort}
	}
	for _, p := range l.Ports {
		old := ruleset.Endpoint{Addr: l.Addr.As4(), Port: p.ContainerPort}
		if ep, ok := next[p.key()]; ok && ep == old {
			delete(next, p.key())
		} else if ok {
			u.SetHostPort(p.key(), &old, &ep)
			delete(next, p.key())
		} else {
			u.SetHostPort(p.key(), &old, nil)
			delete(n.ports, p.key())
		}
	}
	for k, ep := range next {
		u.SetHostPort(k, nil, &ep)
	}
	for _, p := range ports {
		n.ports[p.key()] = uid
	}
	l.Ports = ports
}

// Resync makes the table hold this node's pods and host ports, whatever it
// holds now. The table must exist.
func (n *Network) Resync() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	state, err := n.cfg.Table.Load()
	if err != nil {
		return fmt.Errorf("pods in the ruleset: %w", err)
	}
	u := &ruleset.Unit{}
	hairpin, ports := map[netip.Addr]bool{}, map[ruleset.Key]ruleset.Endpoint{}
	for _, l := range n.leases.Pods {
		hairpin[l.Addr], l.inTable = true, true
		for _, p := range l.Ports {
			ports[p.key()] = ruleset.Endpoint{Addr: l.Addr.As4(), Port: p.ContainerPort}
		}
	}
	for a := range hairpin {
		if !state.Hairpin[a] {
			u.Hairpin(a.As4(), true)
		}
	}
	for a := range state.Hairpin {
		if !hairpin[a] {
			u.Hairpin(a.As4(), false)
		}
	}
	for k, want := range ports {
		if have, ok := state.HostPorts[k]; !ok {
			u.SetHostPort(k, nil, &want)
		} else if have != want {
			u.SetHostPort(k, &have, &want)
		}
	}
	for k, have := range state.HostPorts {
		if _, ok := ports[k]; !ok {
			u.SetHostPort(k, &have, nil)
		}
	}
	if u.Empty() {
		return nil
	}
	if err := n.cfg.Table.Apply([]*ruleset.Unit{u}); err != nil {
		return fmt.Errorf("pods in the ruleset: %w", err)
	}
	return nil
}

// Counts returns how many pods have an address, and how many other nodes are
// reached.
func (n *Network) Counts() (pods, peers int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.leases.Pods), len(n.peers)
}
