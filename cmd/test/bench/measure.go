package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster"
)

const namespace = "default"

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (s *instance) awaitNode(ctx context.Context) error {
	w, err := s.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if n, ok := e.Object.(*corev1.Node); ok && nodeReady(n) {
			return nil
		}
	}
	return errors.New("the node did not become ready")
}

// idle watches the node doing nothing: memory of the server, its CPU time, and
// the entries that the log grew by.
func (s *instance) idle(ctx context.Context, d time.Duration) ([]row, error) {
	select { // what starting left over settles
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	cpu0, err := cpuTime(s.PID())
	if err != nil {
		return nil, err
	}
	before, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	cpu1, err := cpuTime(s.PID())
	if err != nil {
		return nil, err
	}
	after, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	rss, err := rssMiB(s.PID())
	if err != nil {
		return nil, err
	}
	return []row{
		{What: "idle node with everything, RSS", Value: rss, Unit: "MiB", Budget: 100, Upstream: "676 MiB"},
		{What: "idle CPU, of one core", Value: 100 * (cpu1 - cpu0).Seconds() / d.Seconds(), Unit: "%", Budget: 0.5},
		{What: "log entries while idle", Value: float64(after.Raft.LastIndex - before.Raft.LastIndex), Unit: "appends"},
	}, nil
}

func (s *instance) status(ctx context.Context) (st cluster.Status, err error) {
	out, err := s.Skiff(ctx, "status", "-o", "json", "--data-dir", s.DataDir)
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, i := range []int{11, 12} { // utime, stime
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

func rssMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no VmRSS of process %d", pid)
}

func helloPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": "latency"}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To[int64](0),
			Containers: []corev1.Container{{Name: "hello", Image: "skiff.local/hello:v1"}}},
	}
}

// createToRunning times single pods, one after the other, from the request to
// the moment a watcher sees them Running.
func (s *instance) createToRunning(ctx context.Context) ([]row, error) {
	const rounds = 60
	pods := s.client.CoreV1().Pods(namespace)
	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "bench=latency"})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	var took []time.Duration
	for i := range rounds {
		name := fmt.Sprintf("latency-%d", i)
		begin := time.Now()
		if _, err := pods.Create(ctx, helloPod(name), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		if err := await(ctx, w, func(e watch.Event, p *corev1.Pod) bool { return p.Name == name && p.Status.Phase == corev1.PodRunning }); err != nil {
			return nil, fmt.Errorf("pod %s did not run: %w", name, err)
		}
		took = append(took, time.Since(begin))
		if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		if err := await(ctx, w, func(e watch.Event, p *corev1.Pod) bool { return p.Name == name && e.Type == watch.Deleted }); err != nil {
			return nil, fmt.Errorf("pod %s did not go: %w", name, err)
		}
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return []row{
		{What: "create -> Running, median", Value: ms(took[rounds/2]), Unit: "ms", Budget: 80, Upstream: "507-570 ms"},
		{What: "create -> Running, p99", Value: ms(took[rounds*99/100]), Unit: "ms", Budget: 300},
	}, nil
}

func await(ctx context.Context, w watch.Interface, done func(watch.Event, *corev1.Pod) bool) error {
	limit := time.After(30 * time.Second)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return errors.New("the watch ended")
			}
			if p, ok := e.Object.(*corev1.Pod); ok && done(e, p) {
				return nil
			}
		case <-limit:
			return errors.New("30 s have passed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *instance) hundredReplicas(ctx context.Context) ([]row, error) {
	const replicas = 100
	labels := map[string]string{"bench": "hundred"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "hundred"}, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](replicas), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: helloPod("").Spec}}}
	w, err := s.client.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	begin := time.Now()
	if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	limit := time.After(2 * time.Minute)
	for ready := int32(0); ready < replicas; {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				return nil, errors.New("the watch ended")
			}
			if d, ok := e.Object.(*appsv1.Deployment); ok {
				ready = d.Status.ReadyReplicas
			}
		case <-limit:
			return nil, fmt.Errorf("%d of %d replicas are ready after two minutes", ready, replicas)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	took := time.Since(begin)
	background := metav1.DeletePropagationForeground
	if err := s.client.AppsV1().Deployments(namespace).Delete(ctx, "hundred", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		return nil, err
	}
	for {
		list, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "bench=hundred"})
		if err != nil {
			return nil, err
		}
		if len(list.Items) == 0 {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return []row{{What: "100-replica Deployment -> all Ready", Value: took.Seconds(), Unit: "s", Budget: 4, Upstream: "17-19 s"}}, nil
}

// creates counts durable creates by 16 clients, each with its own connection.
func (s *instance) creates(ctx context.Context) ([]row, error) {
	const d = 5 * time.Second
	clients := make([]kubernetes.Interface, 16)
	for i := range clients {
		cfg := rest.CopyConfig(s.config)
		cfg.Dial = (&net.Dialer{}).DialContext // configs that share it share connections
		c, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return nil, err
		}
		if _, err := c.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
			return nil, err
		}
		clients[i] = c
	}
	maps, err := rate(ctx, clients, d, func(ctx context.Context, c kubernetes.Interface, name string) error {
		_, err := c.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": strings.Repeat("x", 256)}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	pods, err := rate(ctx, clients, d, func(ctx context.Context, c kubernetes.Interface, name string) error {
		p := helloPod(name)
		p.Labels = map[string]string{"bench": "creates"}
		p.Spec.SchedulerName = "nobody" // they are only stored
		_, err := c.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return []row{
		{What: "create ConfigMap, 16 clients, durable", Value: maps, Unit: "/s", Budget: 2500, AtLeast: true, Upstream: "1,951 /s"},
		{What: "create Pod, 16 clients, durable", Value: pods, Unit: "/s", Budget: 1600, AtLeast: true, Upstream: "1,052 /s"},
	}, nil
}

func rate(ctx context.Context, clients []kubernetes.Interface, d time.Duration, do func(ctx context.Context, c kubernetes.Interface, name string) error) (float64, error) {
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := time.Now()
	for n, c := range clients {
		wg.Go(func() {
			for i := 0; time.Since(begin) < d && ctx.Err() == nil && failed.Load() == nil; i++ {
				if err := do(ctx, c, fmt.Sprintf("bench-%d-%d", n, i)); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return 0, *e
	}
	return float64(done.Load()) / time.Since(begin).Seconds(), ctx.Err()
}
