package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// fullNode is how many pods a node takes by default.
const fullNode = 110

// onServerWithBox is onServer on a server that has busyboxImage.
func onServerWithBox(ctx context.Context, binary string, do func(*instance) ([]row, error)) ([]row, error) {
	images, err := os.MkdirTemp("", "skiff-bench-images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(images)
	if err := busybox(ctx, images); err != nil {
		return nil, err
	}
	return onServer(ctx, binary, []string{"--image-dir", images}, do)
}

// use is what skiff and its shims take.
type use struct {
	server, shims, children time.Duration // CPU; children of shims that have ended
	serverPSS, shimPSS      float64       // MiB
	n                       int           // of shims
}

// use reads what the server and the shims, which are its children, take. Their
// memory is left out unless asked for: to read it costs the machine milliseconds.
func (s *instance) use(memory bool) (u use, err error) {
	if u.server, err = cpuTime(s.PID()); err != nil {
		return u, err
	}
	if memory {
		if u.serverPSS, err = pssMiB(s.PID()); err != nil {
			return u, err
		}
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return u, err
	}
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended meanwhile
		}
		text := string(b)
		end := strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		if !strings.HasSuffix(text[:end], "(skiff-shim") || fields[1] != strconv.Itoa(s.PID()) {
			continue
		}
		u.n++
		for i, to := range map[int]*time.Duration{11: &u.shims, 12: &u.shims, 13: &u.children, 14: &u.children} { // utime, stime, cutime, cstime
			ticks, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return u, err
			}
			*to += time.Duration(ticks) * 10 * time.Millisecond
		}
		if memory {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				return u, err
			}
			pss, err := pssMiB(pid)
			if err != nil {
				return u, err
			}
			u.shimPSS += pss
		}
	}
	return u, nil
}

// pssMiB is a process's memory, of shared pages its part.
func pssMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no Pss of process %d", pid)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// over gives the CPU that was used in d, as percent of a core.
func over(before, after time.Duration, d time.Duration) float64 {
	return 100 * (after - before).Seconds() / d.Seconds()
}

// comeToRest lets pods that have just started, or gone, come to rest.
const comeToRest = 20 * time.Second

// full fills the node with pods of one program, lets them idle, and empties it.
func (s *instance) full(ctx context.Context, idle time.Duration) ([]row, error) {
	if err := wait(ctx, comeToRest); err != nil {
		return nil, err
	}
	before, err := s.use(true)
	if err != nil {
		return nil, err
	}
	spec := helloPod("").Spec
	spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	started, err := s.deploy(ctx, "full", fullNode, spec)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, comeToRest); err != nil {
		return nil, err
	}
	began, err := s.use(false)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, idle); err != nil {
		return nil, err
	}
	ended, err := s.use(false)
	if err != nil {
		return nil, err
	}
	weight, err := s.use(true)
	if err != nil {
		return nil, err
	}
	stopped, err := s.remove(ctx, "full")
	if err != nil {
		return nil, err
	}
	shim := weight.shimPSS / fullNode
	grown := (weight.serverPSS - before.serverPSS) / fullNode
	return []row{
		{What: "110 pods of one node: created -> all Ready", Value: started.Seconds(), Unit: "s"},
		{What: "110 pods: memory of each beyond its processes (skiff's growth and shim, PSS)", Value: grown + shim, Unit: "MiB", Budget: 4},
		{What: "  of that the shim", Value: shim, Unit: "MiB"},
		{What: "110 idle pods: CPU of skiff, of one core", Value: over(began.server, ended.server, idle), Unit: "%"},
		{What: "110 idle pods: CPU of the shims, of one core", Value: over(began.shims, ended.shims, idle), Unit: "%"},
		{What: "110 pods: deleted -> all gone (hello goes on for half a second)", Value: stopped.Seconds(), Unit: "s"},
	}, nil
}

// deploy runs n pods and waits until they are ready.
func (s *instance) deploy(ctx context.Context, name string, n int32, spec corev1.PodSpec) (time.Duration, error) {
	labels := map[string]string{"bench": name}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To(n), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}}}
	w, err := s.client.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	begin := time.Now()
	if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	limit := time.After(5 * time.Minute)
	for ready := int32(0); ready < n; {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				return 0, errors.New("the watch ended")
			}
			if d, ok := e.Object.(*appsv1.Deployment); ok {
				ready = d.Status.ReadyReplicas
			}
		case <-limit:
			return 0, fmt.Errorf("%d of %d pods are ready after five minutes", ready, n)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return time.Since(begin), nil
}

// remove deletes them, and waits until the last pod is gone.
func (s *instance) remove(ctx context.Context, name string) (time.Duration, error) {
	begin := time.Now()
	policy := metav1.DeletePropagationBackground
	if err := s.client.AppsV1().Deployments(namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		return 0, err
	}
	for end := begin.Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		list, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "bench=" + name, Limit: 1})
		if err != nil {
			return 0, err
		}
		if len(list.Items) == 0 {
			return time.Since(begin), nil
		}
		if time.Now().After(end) {
			return 0, errors.New("pods are left after five minutes")
		}
	}
}

// probes measures what three probes a second for each of 110 pods cost skiff.
// Each pod has two containers: its program is asked twice, and once by the second
// container's probe. Probes that run a command are 20 a second: more are too much
// for two processors.
func (s *instance) probes(ctx context.Context, idle time.Duration) (rows []row, err error) {
	web := func(handler corev1.ProbeHandler) corev1.PodSpec {
		probe := &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 10}
		return corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To[int64](0), Containers: []corev1.Container{
			{Name: "web", Image: busyboxImage, Command: []string{"sh", "-c", "mkdir /www; echo ok >/www/healthz; exec httpd -f -p 8080 -h /www"}, LivenessProbe: probe, ReadinessProbe: probe},
			{Name: "second", Image: busyboxImage, Command: []string{"sleep", "1000000"}, LivenessProbe: probe}}}
	}
	port := intstr.FromInt32(8080)
	const execs = 20
	for _, h := range []struct {
		name string
		pods int32
		spec corev1.PodSpec
		row  func(skiff, all float64) row // percent of a core
	}{
		{"http", fullNode, web(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: port}}), func(skiff, _ float64) row {
			return row{What: "330 http probes a second: CPU of skiff, of one core", Value: skiff, Unit: "%", Budget: 2}
		}},
		{"tcp", fullNode, web(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}), func(skiff, _ float64) row {
			return row{What: "330 tcp probes a second: CPU of skiff, of one core", Value: skiff, Unit: "%", Budget: 2}
		}},
		{"exec", execs, corev1.PodSpec{TerminationGracePeriodSeconds: ptr.To[int64](0), Containers: []corev1.Container{
			{Name: "box", Image: busyboxImage, Command: []string{"sleep", "1000000"}, LivenessProbe: &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 10,
				ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}}}}, func(skiff, all float64) row {
			return row{What: fmt.Sprintf("%d exec probes a second: CPU of each, skiff, shim and command", execs), Value: 10 * all / execs, Unit: "ms"}
		}},
	} {
		name := "probes-" + h.name
		if _, err := s.deploy(ctx, name, h.pods, h.spec); err != nil {
			return rows, fmt.Errorf("pods with %s probes: %w", h.name, err)
		}
		if err := wait(ctx, comeToRest); err != nil {
			return rows, err
		}
		before, err := s.use(false)
		if err != nil {
			return rows, err
		}
		if err := wait(ctx, idle); err != nil {
			return rows, err
		}
		after, err := s.use(false)
		if err != nil {
			return rows, err
		}
		skiff := over(before.server, after.server, idle)
		rows = append(rows, h.row(skiff, skiff+over(before.shims, after.shims, idle)+over(before.children, after.children, idle)))
		if restarts, err := s.restarts(ctx, name); err != nil || restarts > 0 {
			return rows, errors.Join(err, fmt.Errorf("%d containers with %s probes were restarted", restarts, h.name))
		}
		if _, err := s.remove(ctx, name); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (s *instance) restarts(ctx context.Context, name string) (n int32, err error) {
	list, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "bench=" + name})
	if err != nil {
		return 0, err
	}
	for _, p := range list.Items {
		for _, c := range p.Status.ContainerStatuses {
			n += c.RestartCount
		}
	}
	return n, nil
}

// percentiles gives the median and the 99th percentile in milliseconds.
func percentiles(took []time.Duration) (p50, p99 float64) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return ms(took[len(took)/2]), ms(took[len(took)*99/100])
}
