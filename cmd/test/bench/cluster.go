package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/fleet"
)

// clusterBench is a cluster of real processes whose nodes die.
type clusterBench struct {
	*dev.Cluster
	servers map[string]kubernetes.Interface
	nodes   []string
}

const awaitPause = 2 * time.Millisecond

// benchCluster measures what failures cost.
func benchCluster(ctx context.Context, binary string, leaderKills, nodeKills int) (rows []row, err error) {
	parent, err := os.MkdirTemp("", "skiff-bench-cluster-")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(parent, "cluster")
	defer func() {
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, downErr := dev.Down(clean, dir)
		err = errors.Join(err, downErr, os.RemoveAll(parent))
	}()
	d, err := dev.Up(ctx, dev.Config{Dir: dir, Binary: binary, Servers: 3, Agents: 2})
	if err != nil {
		return nil, fmt.Errorf("cluster of three servers: %w", err)
	}
	b := &clusterBench{Cluster: d, servers: map[string]kubernetes.Interface{}}
	st, err := d.Status()
	if err != nil {
		return nil, err
	}
	for _, n := range st.Nodes {
		b.nodes = append(b.nodes, n.Name)
		if n.Role != dev.Server {
			continue
		}
		cfg, err := d.RESTConfig(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		cfg.QPS, cfg.Timeout = -1, time.Second
		if b.servers[n.Name], err = kubernetes.NewForConfig(cfg); err != nil {
			return nil, err
		}
	}
	writes, err := b.killLeaders(ctx, leaderKills)
	if err != nil {
		return nil, err
	}
	nodes, err := b.killNodes(ctx, nodeKills)
	if err != nil {
		return nil, err
	}
	return append(writes, nodes...), nil
}

// healthy waits until everything is as before a kill.
func (b *clusterBench) healthy(ctx context.Context) error {
	if err := b.AwaitVoters(ctx, time.Minute); err != nil {
		return err
	}
	return b.AwaitReady(ctx, time.Minute, b.nodes...)
}

func (b *clusterBench) killLeaders(ctx context.Context, times int) ([]row, error) {
	var took []time.Duration
	for i := range times {
		if err := b.healthy(ctx); err != nil {
			return nil, err
		}
		st, err := b.Members(ctx)
		if err != nil {
			return nil, err
		}
		gap, err := b.killLeader(ctx, st.Leader, i)
		if err != nil {
			return nil, fmt.Errorf("kill %d of the leader: %w", i, err)
		}
		took = append(took, gap)
		if err := b.Start(ctx, st.Leader); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	what := fmt.Sprintf("leader killed -> writes again, %%s of %d", times)
	return []row{
		{What: fmt.Sprintf(what, "median"), Value: took[times/2].Seconds(), Unit: "s", Budget: 2},
		{What: fmt.Sprintf(what, "p99"), Value: took[times*99/100].Seconds(), Unit: "s", Budget: 2},
	}, nil
}

// killLeader returns the time from the kill until another server has
// acknowledged a write that was sent after it.
func (b *clusterBench) killLeader(ctx context.Context, leader string, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	if err := b.Kill(ctx, leader, dev.KillOptions{}); err != nil {
		return 0, err
	}
	written := make(chan time.Time, len(b.servers))
	for name, client := range b.servers {
		if name == leader {
			continue
		}
		go func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("kill-%d-%s-%d", n, name, i)}}
				if _, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, m, metav1.CreateOptions{}); err == nil {
					written <- time.Now()
					return
				}
				time.Sleep(awaitPause)
			}
		}()
	}
	select {
	case at := <-written:
		return at.Sub(begin), nil
	case <-ctx.Done():
		return 0, errors.New("no write within a minute")
	}
}

const (
	spread        = "spread"
	evictionPause = 12 * time.Second // evictions go to a tenth of a node a second
)

// spreadOut runs pods on all nodes behind a service. They do not wait for a
// node that is lost.
func (b *clusterBench) spreadOut(ctx context.Context, client kubernetes.Interface) error {
	labels := map[string]string{"bench": spread}
	spec := helloPod("").Spec
	for _, taint := range []string{corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady} {
		spec.Tolerations = append(spec.Tolerations, corev1.Toleration{Key: taint, Operator: corev1.TolerationOpExists,
			Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](0)})
	}
	spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: corev1.LabelHostname,
		WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: labels}}}
	_, err := client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: spread},
		Spec: appsv1.DeploymentSpec{Replicas: ptr.To(int32(2 * len(b.nodes))), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: spread},
		Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}, metav1.CreateOptions{})
	return err
}

func (b *clusterBench) killNodes(ctx context.Context, times int) ([]row, error) {
	st, err := b.Members(ctx)
	if err != nil {
		return nil, err
	}
	client := b.servers[st.Leader]
	if err := b.spreadOut(ctx, client); err != nil {
		return nil, err
	}
	var gone, replaced []time.Duration
	victims := b.nodes[len(b.nodes)-2:] // the agents
	var evicted time.Time
	for i := range times {
		// Nodes that are lost one soon after the other wait for their turn, by design.
		time.Sleep(time.Until(evicted.Add(evictionPause)))
		victim := victims[i%len(victims)]
		if err := b.healthy(ctx); err != nil {
			return nil, err
		}
		if err := b.rebalance(ctx, client, victim); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := b.Kill(ctx, victim, dev.KillOptions{Host: true}); err != nil {
			return nil, err
		}
		err := until(ctx, func() (bool, error) { n, err := b.endpoints(ctx, client, victim); return n == 0, err })
		if err != nil {
			return nil, fmt.Errorf("endpoints of %s: %w", victim, err)
		}
		gone = append(gone, time.Since(begin))
		err = until(ctx, func() (bool, error) {
			running, _, err := b.running(ctx, client, victim)
			return running == 2*len(b.nodes), err
		})
		if err != nil {
			return nil, fmt.Errorf("pods of %s: %w", victim, err)
		}
		evicted = time.Now()
		replaced = append(replaced, evicted.Sub(begin))
		if err := b.Start(ctx, victim); err != nil {
			return nil, err
		}
	}
	slices.Sort(gone)
	slices.Sort(replaced)
	return []row{
		{What: fmt.Sprintf("node killed -> endpoints gone, longest of %d", times), Value: gone[times-1].Seconds(), Unit: "s", Budget: 5},
		{What: fmt.Sprintf("node killed -> pods replaced, timeout 0, longest of %d", times), Value: replaced[times-1].Seconds(), Unit: "s", Budget: 8},
	}, nil
}

// until waits a minute at most. Errors of requests are told if it takes longer.
func until(ctx context.Context, ok func() (bool, error)) error {
	var last error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		done, err := ok()
		if done && err == nil {
			return nil
		}
		if last = err; ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.Join(errors.New("not as awaited after a minute"), last)
}

// rebalance makes sure that a node has pods to lose, and that they are served.
func (b *clusterBench) rebalance(ctx context.Context, client kubernetes.Interface, node string) error {
	return until(ctx, func() (bool, error) {
		others, here, err := b.running(ctx, client, node)
		if err != nil || others+here < 2*len(b.nodes) {
			return false, err
		}
		if here == 0 { // they do not come back by themselves: take those of a fuller node away
			err := client.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "bench=" + spread})
			time.Sleep(time.Second)
			return false, err
		}
		n, err := b.endpoints(ctx, client, node)
		return n == here, err
	})
}

// running counts the pods that run and are ready, elsewhere and on a node.
func (b *clusterBench) running(ctx context.Context, client kubernetes.Interface, node string) (others, here int, err error) {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "bench=" + spread})
	if err != nil {
		return 0, 0, err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		switch {
		case !ready || p.DeletionTimestamp != nil:
		case p.Spec.NodeName == node:
			here++
		default:
			others++
		}
	}
	return others, here, nil
}

// endpoints counts those of a node that get traffic.
func (b *clusterBench) endpoints(ctx context.Context, client kubernetes.Interface, node string) (n int, err error) {
	slices, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + spread})
	if err != nil {
		return 0, err
	}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			if ptr.Deref(e.NodeName, "") == node && ptr.Deref(e.Conditions.Ready, true) {
				n++
			}
		}
	}
	return n, nil
}

// benchFleet measures what many nodes cost that do nothing. Their containers
// exist in memory only; servers, agents, gossip and API are real.
func benchFleet(ctx context.Context, idle time.Duration) ([]row, error) {
	dir, err := os.MkdirTemp("", "skiff-bench-fleet-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	r, err := fleet.Run(ctx, fleet.Config{Servers: 3, Nodes: 20, PodsPerNode: 2, Idle: idle, Dir: dir, Logger: slog.New(slog.DiscardHandler),
		Say: func(string, ...any) {}})
	if err != nil {
		return nil, fmt.Errorf("fleet of 20 nodes: %w", err)
	}
	return []row{
		{What: "3 servers and 20 nodes, idle: log entries a minute", Value: r.IdleAppends, Unit: "appends"},
		{What: "3 servers and 20 nodes, idle: CPU of all 23, of one core", Value: r.IdleCPU, Unit: "%"},
	}, nil
}
