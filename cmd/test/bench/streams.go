package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"
)

const busyboxImage = "skiff.test/busybox:1.36"

// busybox makes the image of that name.
func busybox(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "run", "github.com/skiff-sh/skiff/cmd/test/images", "-only", "busybox", "-out", dir)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make an image: %w\n%s", err, b)
	}
	return nil
}

const (
	logLines = 3_000_000
	logLine  = "a line as programs write them: its time, its level, what it is about, and in all one hundred bytes."
)

// logs lets one container write as fast as it can. The container takes the time
// itself, so that no API request is in it.
func (s *instance) logs(ctx context.Context) ([]row, error) {
	const uptime = "$(cut -d' ' -f1 /proc/uptime)"
	pod := boxPod("logs", "sh", "-c", fmt.Sprintf(`begin=%[1]s; yes '%[2]s' | head -n %[3]d; echo done $begin %[1]s; exec sleep 1000`, uptime, logLine, logLines))
	if err := s.run(ctx, pod); err != nil {
		return nil, err
	}
	var last string
	for end := time.Now().Add(3 * time.Minute); !strings.HasPrefix(last, "done "); {
		if time.Now().After(end) {
			return nil, fmt.Errorf("the log has not ended after three minutes: its last line is %q", last)
		}
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return nil, err
		}
		b, err := s.client.CoreV1().Pods(namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: ptr.To[int64](1)}).DoRaw(ctx)
		if err != nil {
			return nil, err
		}
		last = string(b)
	}
	var begin, end float64
	if _, err := fmt.Sscanf(last, "done %f %f", &begin, &end); err != nil {
		return nil, fmt.Errorf("the log ends with %q: %w", last, err)
	}
	u, err := s.use(false)
	if err != nil {
		return nil, err
	}
	if err := s.end(ctx, pod.Name); err != nil {
		return nil, err
	}
	rate := logLines / (end - begin)
	return []row{
		{What: "log of one container: lines of 100 bytes", Value: rate, Unit: "/s", Budget: 5000, AtLeast: true},
		{What: "log of one container", Value: rate * float64(len(logLine)+1) / 1e6, Unit: "MB/s"},
		{What: "log at 5,000 lines a second: CPU of the shim, of one core", Value: 100 * u.shims.Seconds() / logLines * 5000, Unit: "%"},
	}, nil
}

// execs runs `true` in a container by the API, each time over a new connection
// as kubectl does.
func (s *instance) execs(ctx context.Context) ([]row, error) {
	const rounds = 200
	pod := boxPod("exec", "sleep", "1000000")
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	if err := s.run(ctx, pod); err != nil {
		return nil, err
	}
	before, err := s.use(false)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for range rounds {
		begin := time.Now()
		if err := s.exec(ctx, pod.Name, "true"); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	after, err := s.use(false)
	if err != nil {
		return nil, err
	}
	if err := s.end(ctx, pod.Name); err != nil {
		return nil, err
	}
	p50, p99 := percentiles(took)
	cpu := func(a, b time.Duration) float64 { return 1000 * (b - a).Seconds() / rounds }
	return []row{
		{What: "exec of true by the API, median", Value: p50, Unit: "ms", Budget: 20},
		{What: "exec of true by the API, p99", Value: p99, Unit: "ms"},
		{What: "exec of true: CPU of the shim and of the processes it makes", Value: cpu(before.shims+before.children, after.shims+after.children), Unit: "ms"},
		{What: "exec of true: CPU of skiff, API server included", Value: cpu(before.server, after.server), Unit: "ms"},
	}, nil
}

func (s *instance) exec(ctx context.Context, pod string, command ...string) error {
	url := s.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	cfg := rest.CopyConfig(s.config)
	cfg.ContentType = ""
	e, err := remotecommand.NewWebSocketExecutor(cfg, "GET", url.String())
	if err != nil {
		return err
	}
	var out, errs bytes.Buffer
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return fmt.Errorf("exec %s: %w: %s%s", strconv.Quote(strings.Join(command, " ")), err, out.String(), errs.String())
	}
	return nil
}

func boxPod(name string, command ...string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To[int64](0),
		Containers: []corev1.Container{{Name: "box", Image: busyboxImage, Command: command}}}}
}

// run starts a pod and waits until it runs.
func (s *instance) run(ctx context.Context, pod *corev1.Pod) error {
	pods := s.client.CoreV1().Pods(namespace)
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return err
	}
	var last *corev1.Pod
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		p, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if last = p; p.Status.Phase == corev1.PodRunning {
			return nil
		}
	}
	return fmt.Errorf("pod %s is %s after a minute: %v", pod.Name, last.Status.Phase, last.Status.ContainerStatuses)
}

// end deletes a pod and waits until it is gone.
func (s *instance) end(ctx context.Context, name string) error {
	pods := s.client.CoreV1().Pods(namespace)
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return nil
		}
	}
	return errors.New("pod " + name + " is still there after a minute")
}
