package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// Config of a Run.
type Config struct {
	Servers, Nodes int
	PodsPerNode    int           // at rest
	Churn          time.Duration // 0: none
	Warm           time.Duration // churn before what is held is compared
	Idle           time.Duration // how long the cost of doing nothing is measured; 0: not at all
	Seed           uint64        // of the churn
	Dir            string        // for the data of all members
	Say            func(format string, args ...any)
	Logger         *slog.Logger
}

// Report is what a Run found.
type Report struct {
	IdleAppends float64 `json:"idleAppendsPerMinute"` // entries of the log
	IdleCPU     float64 `json:"idleCPUPercent"`       // of one core, of the whole process
	Writes      float64 `json:"writesPerSecond"`      // revisions, during the churn
	Leaders     int     `json:"leadersStopped"`
	Crashes     int     `json:"agentsStopped"`
	Losses      int     `json:"machinesLost"`
	Scalings    int     `json:"scalings"`
	Deletions   int     `json:"podsDeleted"`
	Started     int     `json:"podsStarted"`
	Settled     float64 `json:"settledSeconds"`         // from the last of the churn until all is as it should be
	Back        float64 `json:"backAfterOutageSeconds"` // from the start of all servers until all agents work
	Before      Sample  `json:"before"`
	After       Sample  `json:"after"`
}

type fleet struct {
	Config
	servers []*server
	hosts   []*host
	client  kubernetes.Interface
	agents  membership.Token
	rand    *rand.Rand
	lost    map[string]bool // hosts that were switched off, whose containers may have been started again
	report  Report
}

const (
	startLimit  = 2 * time.Minute
	settleLimit = 3 * time.Minute
	tellAfter   = 10 * time.Second
	quietFirst  = 20 * time.Second // before nothing is measured
	elections   = 4                // on a machine with no time for the leader, while nothing is measured, at most
)

// Run makes the cluster, lets nodes, pods and leaders come and go, and returns
// an error that names whatever is wrong at the end.
func Run(ctx context.Context, c Config) (_ Report, err error) {
	f := &fleet{Config: c, rand: rand.New(rand.NewPCG(c.Seed, 1)), lost: map[string]bool{}}
	base := byte(100 + os.Getpid()%100)
	for i := 1; i <= c.Servers; i++ {
		f.servers = append(f.servers, newServer(i, netip.AddrFrom4([4]byte{127, base, 0, byte(i)}), c.Dir, c.Logger))
	}
	for i := 1; i <= c.Nodes; i++ {
		f.hosts = append(f.hosts, newHost(i, netip.AddrFrom4([4]byte{127, base, 1, byte(i)}), c.Dir, c.Logger))
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	for _, step := range []func(context.Context) error{f.startServers, f.startHosts, f.deploy, f.idle, f.churnAndCompare} {
		if err := step(ctx); err != nil {
			return f.report, err
		}
	}
	return f.report, nil
}

func (f *fleet) stop() error {
	var g errgroup.Group
	for _, h := range f.hosts {
		g.Go(h.down)
	}
	err := g.Wait()
	for i := len(f.servers) - 1; i >= 0; i-- {
		err = errors.Join(err, f.servers[i].down())
	}
	return err
}

func (f *fleet) startServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	begin := time.Now()
	if err := f.servers[0].up(ctx); err != nil {
		return err
	}
	var err error
	if f.client, err = admin(f.servers[0].running(), f.servers); err != nil {
		return err
	}
	t, err := token(ctx, f.client, membership.RoleServer)
	if err != nil {
		return err
	}
	for _, s := range f.servers[1:] {
		if err := f.await(ctx, startLimit, s.name+" joins", func() error { return s.join(ctx, f.servers[0].api(), t) }); err != nil {
			return err
		}
		if err := s.up(ctx); err != nil {
			return err
		}
	}
	err = f.await(ctx, startLimit, "all servers vote", func() error {
		voters := 0
		for _, m := range f.servers[0].running().Status(ctx).Members {
			if m.Voter {
				voters++
			}
		}
		if voters != len(f.servers) {
			return fmt.Errorf("%d voters", voters)
		}
		return nil
	})
	f.Say("%d servers vote after %s", len(f.servers), time.Since(begin).Round(10*time.Millisecond))
	if err == nil {
		f.agents, err = token(ctx, f.client, membership.RoleAgent)
	}
	return err
}

func (f *fleet) startHosts(ctx context.Context) error {
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, h := range f.hosts {
		g.Go(func() error {
			return f.await(gctx, startLimit, h.name+" joins", func() error { return h.up(gctx, f.anyServer(), f.agents) })
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	err := f.await(ctx, startLimit, "all nodes are ready", func() error { return f.nodesReady(ctx) })
	f.Say("%d nodes ready after %s", len(f.hosts), time.Since(begin).Round(10*time.Millisecond))
	return err
}

// anyServer is the address of one that is up.
func (f *fleet) anyServer() string {
	for _, s := range f.servers {
		if s.running() != nil {
			return s.api()
		}
	}
	return f.servers[0].api()
}

func (f *fleet) nodesReady(ctx context.Context) error {
	list, err := f.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range list.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
				ready++
			}
		}
	}
	if ready != len(f.hosts) {
		return fmt.Errorf("%d of %d nodes are ready", ready, len(f.hosts))
	}
	return nil
}

// lastIndex is the end of the log as the servers see it.
func (f *fleet) lastIndex() (last uint64) {
	for _, s := range f.servers {
		if c := s.running(); c != nil {
			last = max(last, c.Status(context.Background()).Raft.LastIndex)
		}
	}
	return last
}

// term of the leader, as the servers see it.
func (f *fleet) term() (last uint64) {
	for _, s := range f.servers {
		if c := s.running(); c != nil {
			last = max(last, c.Status(context.Background()).Raft.Term)
		}
	}
	return last
}

// idle measures what the cluster costs while nothing happens.
func (f *fleet) idle(ctx context.Context) error {
	if f.Idle == 0 {
		return nil
	}
	for range elections {
		sleep(ctx, quietFirst)
		term, index, cpu, begin := f.term(), f.lastIndex(), cpuTime(), time.Now()
		sleep(ctx, f.Idle)
		took := time.Since(begin)
		f.report.IdleAppends = float64(f.lastIndex()-index) / took.Minutes()
		f.report.IdleCPU = 100 * float64(cpuTime()-cpu) / float64(took)
		if f.term() == term {
			break
		}
		f.Say("a leader was elected meanwhile, which is something: once more")
	}
	f.Say("idle, %d servers and %d nodes: %.1f log appends per minute, %.1f %% of a core", len(f.servers), len(f.hosts), f.report.IdleAppends, f.report.IdleCPU)
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// await repeats ok until it holds; what says for what it is.
func (f *fleet) await(ctx context.Context, limit time.Duration, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	tell := begin.Add(tellAfter)
	for {
		err := ok()
		if err == nil {
			if d := time.Since(begin); d > tellAfter {
				f.Say("%s: after %s", what, d.Round(time.Second))
			}
			return nil
		}
		if time.Now().After(tell) {
			f.Say("%s: not after %s: %v", what, time.Since(begin).Round(time.Second), err)
			tell = time.Now().Add(tellAfter)
		}
		sleep(ctx, 200*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		}
	}
}
