package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/cluster/trust"
	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/fsm"
)

func (s *Server) openUpgrades() (err error) {
	s.upgrades, err = upgrade.New(upgrade.Config{
		Name: s.cfg.Name, Version: s.cfg.Version, Store: s.state, Log: s.node, Cluster: upgradeCluster{s}, Binaries: s.cfg.Programs,
		From: s.programFrom, Epoch: func() string { return fmt.Sprintf("%d %s", s.epoch.Number, s.epoch.ID) }, Logger: s.cfg.Logger.With("component", "upgrade"),
	})
	return err
}

// Orders is where this server's own orders of roll-outs come from and its reports
// go. Follow tells when there may be a new one.
func (s *Server) Orders() Orders { return Orders{s} }

// Orders are those of one server.
type Orders struct{ s *Server }

// Order is what this server is to do; nil: nothing.
func (o Orders) Order(ctx context.Context) (*upgrade.Order, error) {
	return o.s.upgrades.Order(ctx, o.s.cfg.Name)
}

// Report keeps what this server says of its order.
func (o Orders) Report(ctx context.Context, r upgrade.Report) error {
	return o.s.upgrades.Report(ctx, o.s.cfg.Name, r)
}

// Binary gives a program from an offset on, from another server that has it.
func (o Orders) Binary(ctx context.Context, sum string, offset int64) (io.ReadCloser, error) {
	return o.s.upgrades.Fetch(ctx, sum, offset)
}

// Follow calls f when there may be a new order, until ctx ends.
func (o Orders) Follow(ctx context.Context, f func()) { o.s.upgrades.Follow(ctx, f) }

// programFrom asks another server for a program, as an administrator.
func (s *Server) programFrom(ctx context.Context, server, sum string, h http.Header) (*http.Response, error) {
	i := slices.IndexFunc(s.peers(), func(p membership.Peer) bool { return p.Name == server && p.Role.Votes() })
	if i < 0 {
		return nil, fmt.Errorf("no server %s is heard of", server)
	}
	client := s.peerClient(s.peers()[i].API())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, servers.Host+upgrade.BinaryPath+sum, nil)
	if err != nil {
		return nil, err
	}
	req.Header = h
	return client.Do(req)
}

// peerClient talks to one server, as an administrator.
func (s *Server) peerClient(address string) *http.Client {
	t := servers.DynamicTransport(s.admin)
	t.DisableKeepAlives = true
	return &http.Client{Transport: servers.New("", servers.Server{Address: address}).Wrap(t)}
}

// upgradeCluster is what roll-outs know and do by way of this server when it
// leads.
type upgradeCluster struct{ s *Server }

// Members implements upgrade.Cluster.
func (u upgradeCluster) Members(ctx context.Context) ([]upgrade.Info, error) {
	st := u.s.members.Status(ctx)
	if st.Partial != "" {
		return nil, errors.New(st.Partial)
	}
	nodes, err := u.nodes(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := u.s.trust.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("the state of the cluster's keys: %w", err)
	}
	peers := map[string]membership.Peer{}
	for _, p := range u.s.peers() {
		peers[p.Name] = p
	}
	out := make([]upgrade.Info, 0, len(st.Members))
	for _, m := range st.Members {
		p := peers[m.Name]
		i := upgrade.Info{Name: m.Name, Role: string(m.Role), MinLevel: p.MinLevel, MaxLevel: p.MaxLevel, Free: p.Free, Leader: m.Leader}
		i.Server, i.Alive, i.Version, i.Voter = m.Role.Votes(), m.State == membership.Alive, m.Version, m.Voter
		i.CaughtUp = m.Healthy != nil && *m.Healthy
		i.KeysBehind = slices.Contains(keys.WaitingOn, m.Name)
		n := nodes[m.Name]
		i.Node = n != nil || p.NodePort != 0
		if n != nil {
			i.NodeReady, i.Cordoned = nodeReady(n), n.Spec.Unschedulable
		}
		out = append(out, i)
	}
	u.apis(ctx, out, peers)
	return out, nil
}

func (u upgradeCluster) nodes(ctx context.Context) (map[string]*corev1.Node, error) {
	client := u.s.client()
	if client == nil {
		return nil, errors.New("no client of the own API")
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := map[string]*corev1.Node{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out, nil
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// apiPatience is for one server to say that its API is ready.
const apiPatience = 2 * time.Second

// apis asks all servers at the same time whether their APIs are ready.
func (u upgradeCluster) apis(ctx context.Context, infos []upgrade.Info, peers map[string]membership.Peer) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range infos {
		p, known := peers[infos[i].Name]
		if !infos[i].Server || !infos[i].Alive || !known {
			continue
		}
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, servers.Host+"/readyz", nil)
			if err != nil {
				return
			}
			resp, err := u.s.peerClient(p.API()).Do(req)
			if err != nil {
				return
			}
			resp.Body.Close()
			infos[i].APIReady = resp.StatusCode == http.StatusOK
		})
	}
	wg.Wait()
}

// upgradeSnapshots is the folder of snapshots that roll-outs take, in the data
// directory; the newest keepSnapshots stay.
const (
	upgradeSnapshots = "upgrade/snapshots"
	keepSnapshots    = 3
)

// Save implements upgrade.Cluster.
func (u upgradeCluster) Save(ctx context.Context) (*upgrade.Saved, error) {
	dir := filepath.Join(u.s.cfg.DataDir, upgradeSnapshots)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path, info, err := backup.SaveIn(ctx, u.s.Snapshot, dir, backup.SaveOptions{Compress: true})
	if err != nil {
		return nil, err
	}
	u.prune(dir)
	return &upgrade.Saved{Server: u.s.cfg.Name, File: path, Revision: info.Revision, At: time.Now().UTC().Truncate(time.Second)}, nil
}

// prune leaves the newest snapshots: their names begin with the same letters, and
// go on with the time.
func (u upgradeCluster) prune(dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "skiff-*.snap*"))
	slices.Sort(files)
	for _, f := range files[:max(0, len(files)-keepSnapshots)] {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil {
		u.s.cfg.Logger.Warn("old snapshots of roll-outs are left behind", "error", err)
	}
}

// HandOver implements upgrade.Cluster.
func (u upgradeCluster) HandOver(ctx context.Context, to string) error {
	for _, p := range u.s.peers() {
		if p.Name == to && p.Role.Votes() {
			return u.s.node.TransferLeadership(ctx, p.ID)
		}
	}
	return fmt.Errorf("no server %s is heard of", to)
}

// RaiseLevel implements upgrade.Cluster.
func (u upgradeCluster) RaiseLevel(ctx context.Context, level int) error {
	return u.s.node.RaiseLevel(ctx, level)
}

// Trouble implements upgrade.Cluster.
func (u upgradeCluster) Trouble(ctx context.Context) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if e := u.s.evictionStatus(); e != nil && e.Frozen {
		add("evictions are frozen: %s", e.Reason)
	}
	switch st, err := u.s.trust.Status(ctx); {
	case err != nil:
		add("the state of the cluster's keys: %v", err)
	case st.CARotation != nil && st.CARotation.Phase != trust.PhaseOverlap:
		add("the CA is being replaced (%s): see skiff certs status", st.CARotation.Phase)
	case st.GossipRotation != nil:
		add("the key of the gossip is being replaced (%s): see skiff certs status", st.GossipRotation.Phase)
	case len(st.WaitingOn) > 0:
		add("members have not taken over the newest keys: %v; see skiff certs status", st.WaitingOn)
	}
	hash := EpochHash(u.s.epoch)
	for _, p := range u.s.peers() {
		if p.Role.Votes() && p.State == membership.Alive && p.Epoch != 0 && (p.Epoch != u.s.epoch.Number || p.EpochHash != hash) {
			add("server %s is of epoch %d, this cluster of epoch %d: see skiff status", p.Name, p.Epoch, u.s.epoch.Number)
		}
	}
	if u.s.schedule != nil {
		for _, p := range u.s.schedule.Status() {
			if p.Error != "" {
				add("scheduled snapshots fail: %s: %s", p.Place, p.Error)
			}
		}
	}
	if err := u.trySnapshot(ctx); err != nil {
		add("a snapshot can't be taken: %v", err)
	}
	return out
}

// trySnapshot takes one to nowhere, verifies it, and looks for the space that one
// would take here.
func (u upgradeCluster) trySnapshot(ctx context.Context) error {
	if free, err := freeMiB(u.s.cfg.DataDir); err != nil {
		return err
	} else if need := uint64(u.s.state.View().Bytes()>>20) + 64; free < need {
		return fmt.Errorf("%d MiB are free in %s, %d are needed", free, u.s.cfg.DataDir, need)
	}
	pr, pw := io.Pipe()
	go func() {
		w := bufio.NewWriterSize(pw, 1<<20)
		err := u.s.Snapshot(ctx, w)
		if err == nil {
			err = w.Flush()
		}
		pw.CloseWithError(err)
	}()
	defer pr.Close()
	r, err := fsm.NewReader(pr)
	for err == nil {
		_, err = r.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
