// Package cluster is a server of the cluster: the replicated log and state, the
// Kubernetes API on it, membership and gossip, and the duties of the leader
// (scheduler and controllers), joined to one Server.
//
// A server on a new data directory makes a cluster of its own. One that joins
// another is given keys and cluster.json first (see Join).
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/api"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/controller/nodelifecycle"
	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cluster/gossip"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/cluster/trust"
	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// nodePurpose is the certificate of the node on this host.
const nodePurpose = "node"

// Server is one member. See New.
type Server struct {
	cfg     Config
	id      string
	pki     *pki.PKI
	state   *store.Store
	node    *consensus.Node
	backend *storage.Backend
	api     *api.Server
	leader  *Leader
	ready   chan struct{}
	started time.Time

	known        known
	epoch        raftdir.Epoch
	epochs       epochs
	memberTLS    *tls.Config // among servers
	settings     atomic.Pointer[membership.Settings]
	gossip       atomic.Pointer[gossip.Gossip] // nil before this server knows the cluster's ID and keys
	peersChanged hub
	roster       *Roster
	refusals     refusals
	members      *membership.Service
	sealer       *seal.Sealer
	trust        *trust.Trust
	upgrades     *upgrade.Service
	leases       *nodehealth.Leases
	evictions    *nodelifecycle.Board
	admin        *pki.Leaf
	leaves       map[string]*pki.Leaf // by what they are for

	schedule       *backup.Schedule // nil: no snapshots are scheduled
	snapshotReport *snapshotReport  // there with schedule

	// closers undo what New did, for a server that is never run.
	closers []func() error
}

// New opens the data dir (making keys and identity if there are none) and both
// ports, and assembles the server; it starts nothing. If it succeeds, Run or
// Close must follow.
func New(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, ready: make(chan struct{}), started: time.Now(), evictions: &nodelifecycle.Board{}, leaves: map[string]*pki.Leaf{}}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open() (err error) {
	c := &s.cfg
	lock := c.Lock
	if lock == nil {
		if lock, err = consensus.LockDir(c.DataDir); err != nil {
			return err
		}
		s.onClose(func() error { lock.Unlock(); return nil })
	}
	s.epochs.init()
	if _, err := epoch.Resume(context.Background(), c.DataDir); err != nil {
		return err
	}
	if err := CheckProgram(c.DataDir, c.Version, true); err != nil {
		return err
	}
	if err := s.openKnown(); err != nil {
		return err
	}
	if err := s.openEpoch(); err != nil {
		return err
	}
	s.roster = OpenRoster(c.DataDir, c.Logger)
	if s.pki, err = pki.OpenProtected(filepath.Join(c.DataDir, "pki"), c.Passphrase); err != nil {
		return err
	}
	s.pki.SetLogger(c.Logger)
	if s.id, err = NodeID(c.DataDir); err != nil {
		return err
	}
	if err := s.checkLogIsThere(); err != nil {
		return err
	}
	if s.admin, err = s.leaf("administrator", pki.Request{CommonName: adminName, Organization: []string{adminGroup}}); err != nil {
		return err
	}
	if c.NodePort != 0 {
		if _, err := s.leaf(nodePurpose, pki.Request{CommonName: "system:node:" + c.Name, Organization: []string{"system:nodes"},
			DNSNames: []string{c.Name, s.id}, IPs: []net.IP{c.AdvertiseAddress.AsSlice(), net.IPv4(127, 0, 0, 1)}}); err != nil {
			return err
		}
	}
	apiPort, err := s.listen(c.Port, "API")
	if err != nil {
		return err
	}
	raftPort, err := s.listen(c.RaftPort, "servers among themselves")
	if err != nil {
		return err
	}
	if err := s.checkGossipPort(); err != nil {
		return err
	}
	s.state = store.New(store.Config{})
	if err := s.openLog(lock, raftPort); err != nil {
		return err
	}
	if err := s.openTrust(); err != nil {
		return err
	}
	if err := s.openMembership(); err != nil {
		return err
	}
	if err := s.openUpgrades(); err != nil {
		return err
	}
	if s.backend, err = storage.New(storage.Config{Store: s.state, Log: s.node, Sealer: s.sealer, Ready: s.node.Ready(), Logger: c.Logger}); err != nil {
		return err
	}
	if err := s.openAPI(apiPort); err != nil {
		return err
	}
	if err := s.openSnapshots(); err != nil {
		return err
	}
	return s.openLeader()
}

func (s *Server) openLog(lock *consensus.DirLock, port net.Listener) error {
	member, err := s.leaf("servers among themselves", pki.Request{CommonName: memberName, DNSNames: []string{s.id}, IPs: []net.IP{s.cfg.AdvertiseAddress.AsSlice()}})
	if err != nil {
		return err
	}
	s.cfg.RaftPort = listenPort(port)
	s.memberTLS = memberTLS(member, s.isRemoved)
	c := consensus.Config{
		NodeID: s.id, DataDir: s.cfg.DataDir, Lock: lock, Listener: port, AdvertiseAddr: s.self().Raft(),
		TLS: s.memberTLS, FSM: fsm.New(s.state), Logger: s.cfg.Logger.With("component", "raft"),
		Witness: s.cfg.Role == membership.RoleWitness, Version: s.cfg.Version, Alive: s.alive,
		Admit: func(id, addr string) error { return s.members.Admit(id, addr) }, Handlers: s.rpcHandlers(), Restoring: s.pauseDuties,
		Epoch: s.epoch, Open: map[string]consensus.Handler{epoch.Method: epoch.Handler(s.view, s.hear)}, Consult: s.consult,
	}
	// A server that knows of others asks them to be let in, or to have its address
	// corrected; else it is the first one.
	if c.Join = s.joinAddresses(); len(c.Join) == 0 {
		c.Bootstrap = []consensus.Server{{ID: s.id, Addr: c.AdvertiseAddr}}
	}
	if s.node, err = consensus.New(c); err != nil {
		return err
	}
	s.onClose(s.node.Close)
	return nil
}

func (s *Server) openAPI(port net.Listener) error {
	serving, err := s.leaf("API", servingRequest(s.cfg, s.id))
	if err != nil {
		return err
	}
	toNodes, err := s.leaf("API server towards nodes", pki.Request{CommonName: apiServerName, Organization: []string{adminGroup}, DNSNames: []string{s.id}})
	if err != nil {
		return err
	}
	s.cfg.Port = listenPort(port)
	timeout := s.Settings().PodEvictionTimeout
	s.api, err = api.New(api.Config{
		Backend: s.backend, Reservations: allocator.New(s.node, s.state),
		Listener: port, ServingTLS: serving.ServerTLS(), ExternalAddress: hostPort(s.cfg.AdvertiseAddress, s.cfg.Port),
		TokenKey: s.pki.ServiceAccountKey(), NodeTLS: nodeTLS(toNodes),
		ServiceCIDR: s.cfg.ServiceCIDR, ClusterDomain: s.cfg.ClusterDomain,
		PodEvictionTimeout: &timeout, Gossip: nodeGossip{s},
		Handlers: s.handlers(), OpenHandlers: s.members.OpenHandlers(), CheckCertificate: s.members.CheckCertificate, TrustedCA: s.pki.Trusts,
		Fresh: s.node.ReadIndex, Writable: s.writable,
		Membership: s.members.Membership(), LongPaths: []string{SnapshotPath, RestorePath, upgrade.BinaryPath}, StillServed: []string{StatusPath, RecoverPath, membership.RemovedPath, membership.CAPath},
		Profiling: s.cfg.Profiling, Logger: s.cfg.Logger.With("component", "api"),
	})
	if err != nil {
		return fmt.Errorf("assemble the API: %w", err)
	}
	return nil
}

// writable says why this server takes no writes, if so.
func (s *Server) writable() error {
	if err := context.Cause(s.members.Membership()); err != nil {
		return err
	}
	if id, _ := s.node.Leader(); id == "" {
		return fmt.Errorf("%w: reads with resourceVersion=0 go on", consensus.ErrNoLeader)
	}
	return nil
}

func (s *Server) openLeader() error {
	logger := s.cfg.Logger.With("component", "leader")
	controllers, err := Duties(DutiesConfig{API: s.api.LoopbackClientConfig(), ClusterCIDR: s.cfg.ClusterCIDR,
		CA: s.pki.Bundle, CAChanges: s.trust.Changes, Gossip: nodeGossip{s}, Leases: s.leases,
		Volumes: nodeproxy.Volumes{Nodes: s.api.Nodes()}, Evictions: s.evictions, Logger: logger})
	if err != nil {
		return err
	}
	s.leader, err = NewLeader(LeaderConfig{Leadership: leadership{s.node, s.node.LeadershipChanges()}, Logger: logger, Term: func() ([]Duty, error) {
		own, err := s.duties()
		if err != nil {
			return nil, err
		}
		rest, err := controllers()
		return append(append(own, s.snapshotDuties()...), rest...), err
	}})
	return err
}

// leadership gives the one channel of changes that the Leader reads.
type leadership struct {
	*consensus.Node
	changes <-chan bool
}

func (l leadership) LeadershipChanges() <-chan bool { return l.changes }

func (s *Server) listen(port uint16, purpose string) (net.Listener, error) {
	l, err := s.cfg.Listen("tcp", hostPort(s.cfg.BindAddress, port))
	if err != nil {
		return nil, fmt.Errorf("open the port of the %s: %w", purpose, err)
	}
	s.onClose(l.Close)
	return l, nil
}

// listenPort is the port that l has really got.
func listenPort(l net.Listener) uint16 {
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return uint16(a.Port)
	}
	return 0
}

func (s *Server) onClose(f func() error) { s.closers = append(s.closers, f) }

// Close releases what New opened. It is for a Server that is not run.
func (s *Server) Close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		if err := s.closers[i](); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.closers = nil
	return errors.Join(errs...)
}

// Run serves until ctx ends or a part fails, and returns when everything it
// started has ended. Parts stop in this order: the leader's duties and the API,
// then the log they write to. ErrRestart asks for a new Server on the same data
// directory. Loss of the leader, of the quorum or of the membership ends nothing.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.writeKubeconfig(); err != nil { // as on a full disk, which servers work with
		s.cfg.Logger.Error("the administrator's kubeconfig is not up to date", "error", err)
	}
	log, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	logEnded := make(chan error, 1)
	g, ctx := errgroup.WithContext(ctx)
	go func() { logEnded <- s.node.Run(log) }()
	g.Go(func() error {
		select {
		case err := <-logEnded:
			logEnded <- nil
			if errors.Is(err, ErrRestart) || errors.Is(err, ErrRefusedStart) {
				return err
			}
			return fmt.Errorf("the log has stopped: %w", errors.Join(err, errors.New("see above")))
		case <-ctx.Done():
			return nil
		}
	})
	for _, run := range []func(context.Context) error{s.backend.Run, s.api.Run, s.leader.Run, s.trust.Run, s.members.Run,
		s.retire, s.runGossip, s.keepRoster, s.followSettings, s.followEpochs, s.runSnapshots, s.followLevel, s.awaitUnfit, s.awaitReady} {
		g.Go(func() error { return run(ctx) })
	}
	err := g.Wait()
	stopLog()
	return errors.Join(err, <-logEnded)
}

// retire ends this server's part in the log when it was removed. It runs on, so
// that it can say so, and its pods run on.
func (s *Server) retire(ctx context.Context) error {
	member := s.members.Membership()
	select {
	case <-member.Done():
		s.node.Retire(context.Cause(member))
	case <-ctx.Done():
	}
	return nil
}

// awaitReady closes ready when the API serves and what every cluster has from
// the start is there.
func (s *Server) awaitReady(ctx context.Context) error {
	for _, part := range []<-chan struct{}{s.node.Ready(), s.api.Ready()} {
		select {
		case <-part:
		case <-ctx.Done():
			return nil
		}
	}
	if err := s.awaitFoundation(ctx); err != nil {
		return nil // stopped meanwhile
	}
	close(s.ready)
	return nil
}

// Ready is closed when clients can be served.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// LoopbackClientConfig reaches the API in this process, with full rights.
func (s *Server) LoopbackClientConfig() *rest.Config { return s.api.LoopbackClientConfig() }

// PKI is the cluster's certificate authority.
func (s *Server) PKI() *pki.PKI { return s.pki }

// NodeTLS serves the API of the node on this host.
func (s *Server) NodeTLS() *tls.Config {
	return pki.ServerTLS(s.leaves[nodePurpose], pki.TLSOptions{Protos: []string{"http/1.1"}})
}

// ID is this member's stable identity.
func (s *Server) ID() string { return s.id }

// KubeconfigPath is the administrator's kubeconfig, written by Run.
func (s *Server) KubeconfigPath() string { return filepath.Join(s.cfg.DataDir, "admin.kubeconfig") }

// URL is where other hosts reach the API.
func (s *Server) URL() string { return "https://" + hostPort(s.cfg.AdvertiseAddress, s.cfg.Port) }

// Snapshot writes a snapshot of the whole state to w: everything acknowledged
// before the call, consistent at one revision.
func (s *Server) Snapshot(ctx context.Context, w io.Writer) error { return s.node.Snapshot(ctx, w) }

// Status is what this member knows of itself and, with the leader's help, of the
// others.
func (s *Server) Status(ctx context.Context) Status { return s.members.Status(ctx) }
