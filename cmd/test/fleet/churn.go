package fleet

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/fsm/store"
)

const (
	deployments = 10
	namespace   = "default"

	churnStep   = 300 * time.Millisecond
	leaderEvery = 20 * time.Second
	leaderAway  = 3 * time.Second
	crashAway   = time.Second // an agent that is back so soon is not missed

	gcPercent = 300
	// serversLinger is how long the memory of a stopped server may stay: net/http
	// sets the timer of an idle connection, three minutes in our API, once more
	// when it has closed it, and that refers to everything behind.
	serversLinger = 3*time.Minute + 20*time.Second
)

func deploymentName(i int) string { return fmt.Sprintf("app-%d", i) }

// rest is the number of replicas of each deployment while there is no churn.
func (f *fleet) rest() int32 { return int32(max(1, f.Nodes*f.PodsPerNode/deployments)) }

func (f *fleet) deploy(ctx context.Context) error {
	begin, replicas, no := time.Now(), f.rest(), false
	for i := range deployments {
		labels := map[string]string{"app": deploymentName(i)}
		grace := int64(1)
		d := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: deploymentName(i)},
			Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: v1.PodSpec{
					AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
					Containers: []v1.Container{{Name: "app", Image: appImage, ImagePullPolicy: v1.PullIfNotPresent}}}}},
		}
		err := f.await(ctx, settleLimit, "deployment "+d.Name, func() error {
			_, err := f.client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) { // by a try of which it was unknown
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	err := f.await(ctx, settleLimit, "all pods run", func() error { return f.right(ctx) })
	f.Say("%d pods run after %s", int(replicas)*deployments, time.Since(begin).Round(10*time.Millisecond))
	return err
}

// churnAndCompare lets things come and go for a while, looks at what the process
// holds, does so for long, and looks again.
func (f *fleet) churnAndCompare(ctx context.Context) (err error) {
	if f.Churn == 0 {
		return nil
	}
	// All members share a heap. Collected as often as that of one, it would take a
	// quarter of the CPU; what is compared is what is left after a collection.
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	if err := f.churn(ctx, f.Warm); err != nil {
		return err
	}
	if err := f.await(ctx, settleLimit, "no events", func() error { return f.dropEvents(ctx) }); err != nil {
		return err
	}
	if f.report.Before, err = settled(time.Minute); err != nil {
		return err
	}
	f.Say("before: %s", f.report.Before)
	first, err := f.revision(ctx)
	if err != nil {
		return err
	}
	warm, started, begin := f.report, f.started(), time.Now()
	if err := f.churn(ctx, f.Churn); err != nil {
		return err
	}
	took := time.Since(begin)
	last, err := f.revision(ctx)
	if err != nil {
		return err
	}
	r := &f.report
	r.Writes = float64(last-first) / took.Seconds()
	r.Leaders, r.Crashes, r.Losses = r.Leaders-warm.Leaders, r.Crashes-warm.Crashes, r.Losses-warm.Losses
	r.Scalings, r.Deletions, r.Started = r.Scalings-warm.Scalings, r.Deletions-warm.Deletions, f.started()-started
	if err := f.outage(ctx); err != nil {
		return err
	}
	if err := f.await(ctx, settleLimit, "no events", func() error { return f.dropEvents(ctx) }); err != nil {
		return err
	}
	f.Say("churn of %s: %d scalings, %d pods deleted, %d agents stopped, %d machines lost, %d leaders stopped, %d pods started; %.0f writes/s",
		took.Round(time.Second), r.Scalings, r.Deletions, r.Crashes, r.Losses, r.Leaders, r.Started, r.Writes)
	f.Say("%d nodes are ready, each of %d pods runs once, where the API says: none is missed", len(f.hosts), int(f.rest())*deployments)
	if n := 2 * (r.Crashes + r.Losses); n > 0 && r.Leaders > 0 {
		f.Say("were it an hour: a node goes or comes every %s, a leader stops every %s", each(n), each(r.Leaders))
	}
	var grown []string
	for end := time.Now().Add(serversLinger); ; sleep(ctx, 5*time.Second) {
		if r.After, err = settled(time.Minute); err != nil {
			return err
		}
		grown = r.After.grown(r.Before, f.Nodes*f.Servers, f.slack(first))
		if len(grown) == 0 || time.Now().After(end) || ctx.Err() != nil {
			break
		}
	}
	f.Say("after: %s", r.After)
	if len(grown) > 0 {
		return errors.New("more than before the churn: " + strings.Join(grown, "; "))
	}
	return nil
}

// each is the time between n events of an hour.
func each(n int) time.Duration { return (time.Hour / time.Duration(n)).Round(time.Second) }

// started is how many pods the hosts have started so far.
func (f *fleet) started() (n int) {
	for _, h := range f.hosts {
		n += h.containers.count()
	}
	return n
}

// dropEvents deletes the Events, which are kept for an hour: after a compressed
// one they would be most of what is held.
func (f *fleet) dropEvents(ctx context.Context) error {
	begin, n := time.Now(), 0
	for {
		list, err := f.client.CoreV1().Events("").List(ctx, metav1.ListOptions{Limit: 1000})
		if err != nil {
			return fmt.Errorf("events of the churn: %w", err)
		}
		if len(list.Items) == 0 {
			break
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(32)
		for _, e := range list.Items {
			g.Go(func() error {
				err := f.client.CoreV1().Events(e.Namespace).Delete(gctx, e.Name, metav1.DeleteOptions{})
				if apierrors.IsNotFound(err) {
					return nil
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("events of the churn: %w", err)
		}
		n += len(list.Items)
	}
	f.Say("%d Events deleted in %s", n, time.Since(begin).Round(100*time.Millisecond))
	return nil
}

// Each server keeps up to store.DefaultHistoryBytes of the past, which holds the
// changes of so many writes to pods. What was not full before may have filled.
const writesInHistory = 8000

func (f *fleet) slack(revision int64) uint64 {
	const some = 16 << 20
	if revision < writesInHistory*int64(f.Servers) {
		return some + uint64(f.Servers)*store.DefaultHistoryBytes*5/4
	}
	return some
}

func (f *fleet) revision(ctx context.Context) (int64, error) {
	var list *v1.NamespaceList
	err := f.await(ctx, settleLimit, "the revision", func() (err error) {
		list, err = f.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		return err
	})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(list.ResourceVersion, 10, 64)
}

// churn ends with everything as it was, and checks that.
func (f *fleet) churn(ctx context.Context, d time.Duration) error {
	begin := time.Now()
	leaders := time.NewTicker(leaderEvery)
	defer leaders.Stop()
	var back sync.WaitGroup // what was stopped and will return
	var mu sync.Mutex
	var failures []error
	later := func(after time.Duration, up func() error) {
		back.Go(func() {
			sleep(ctx, after)
			if err := up(); err != nil {
				mu.Lock()
				failures = append(failures, err)
				mu.Unlock()
			}
		})
	}
	for time.Since(begin) < d && ctx.Err() == nil {
		select {
		case <-leaders.C:
			if s := f.leader(ctx); s != nil && len(f.servers) > 2 {
				f.report.Leaders++
				if err := s.down(); err != nil {
					return err
				}
				later(leaderAway, func() error { return s.up(ctx) })
			}
		default:
			if err := f.step(ctx, later); err != nil {
				return err
			}
		}
		sleep(ctx, churnStep)
	}
	ended := time.Now()
	back.Wait()
	if err := errors.Join(failures...); err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	for i := range deployments {
		err := f.await(ctx, settleLimit, "scale to the number at rest", func() error { return f.scale(ctx, i, f.rest()) })
		if err != nil {
			return err
		}
	}
	if err := f.await(ctx, settleLimit, "all nodes are ready", func() error { return f.nodesReady(ctx) }); err != nil {
		return err
	}
	err := f.await(ctx, settleLimit, "everything is as it should be", func() error { return f.right(ctx) })
	f.report.Settled = time.Since(ended).Seconds()
	f.Say("as it should be %s after the last of %s of churn", time.Since(ended).Round(100*time.Millisecond), ended.Sub(begin).Round(time.Second))
	return err
}

// step does one thing to the cluster. That the API refuses it, without a leader
// for a moment, is no failure.
func (f *fleet) step(ctx context.Context, later func(time.Duration, func() error)) error {
	const one = 100
	switch dice := f.rand.IntN(one); {
	case dice < 45:
		f.report.Scalings++
		rest := f.rest()
		_ = f.scale(ctx, f.rand.IntN(deployments), rest/2+f.rand.Int32N(rest+1))
	case dice < 60:
		f.report.Deletions++
		list, err := f.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err == nil && len(list.Items) > 0 {
			_ = f.client.CoreV1().Pods(namespace).Delete(ctx, list.Items[f.rand.IntN(len(list.Items))].Name, metav1.DeleteOptions{})
		}
	default:
		h := f.hosts[f.rand.IntN(len(f.hosts))]
		if !h.isUp() || f.down() > len(f.hosts)/10 {
			return nil
		}
		if err := h.down(); err != nil {
			return err
		}
		up := func() error { return h.up(ctx, f.anyServer(), f.agents) }
		if dice < 80 {
			f.report.Crashes++
			later(crashAway, up)
			return nil
		}
		f.report.Losses++
		f.lost[h.name] = true
		h.containers.lose()
		later(2*time.Second+time.Duration(f.rand.Int64N(int64(15*time.Second))), up)
	}
	return nil
}

func (f *fleet) down() (n int) {
	for _, h := range f.hosts {
		if !h.isUp() {
			n++
		}
	}
	return n
}

func (f *fleet) leader(ctx context.Context) *server {
	for _, s := range f.servers {
		if c := s.running(); c != nil {
			if name := c.Status(ctx).Leader; name == s.name {
				return s
			}
		}
	}
	return nil
}

func (f *fleet) scale(ctx context.Context, i int, replicas int32) error {
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)
	_, err := f.client.AppsV1().Deployments(namespace).Patch(ctx, deploymentName(i), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// right says what is not as it should be: each deployment has its replicas, each
// pod runs and is ready, its container runs on its node and nowhere else, and no
// node runs what is not in the API. Containers on nodes that were never lost were
// started once.
func (f *fleet) right(ctx context.Context) error {
	list, err := f.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	count, runs := map[string]int{}, map[string]map[string]int{}
	for _, h := range f.hosts {
		runs[h.name] = h.containers.running()
	}
	for _, p := range list.Items {
		ready := false
		for _, c := range p.Status.Conditions {
			ready = ready || c.Type == v1.PodReady && c.Status == v1.ConditionTrue
		}
		here := runs[p.Spec.NodeName][string(p.UID)]
		switch {
		case p.DeletionTimestamp != nil:
			return fmt.Errorf("pod %s on %q is still ending", p.Name, p.Spec.NodeName)
		case p.Status.Phase != v1.PodRunning || !ready:
			return fmt.Errorf("pod %s on %q is %s, ready %v", p.Name, p.Spec.NodeName, p.Status.Phase, ready)
		case here != 1:
			return fmt.Errorf("pod %s has %d containers on its node %s", p.Name, here, p.Spec.NodeName)
		case p.Status.ContainerStatuses[0].RestartCount > 0 && !f.lost[p.Spec.NodeName]:
			return fmt.Errorf("pod %s was restarted, though its node %s was never lost", p.Name, p.Spec.NodeName)
		}
		delete(runs[p.Spec.NodeName], string(p.UID))
		count[p.Labels["app"]]++
	}
	for node, left := range runs {
		for uid := range left {
			return fmt.Errorf("%s runs pod %s, which the API does not have", node, uid)
		}
	}
	for i := range deployments {
		d, err := f.client.AppsV1().Deployments(namespace).Get(ctx, deploymentName(i), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return fmt.Errorf("deployment %s is gone", deploymentName(i))
		case err != nil:
			return err
		case count[d.Name] != int(*d.Spec.Replicas) || d.Status.ReadyReplicas != *d.Spec.Replicas || d.Status.Replicas != *d.Spec.Replicas:
			return fmt.Errorf("deployment %s: wants %d, has %d pods, says %d ready", d.Name, *d.Spec.Replicas, count[d.Name], d.Status.ReadyReplicas)
		}
	}
	return nil
}
