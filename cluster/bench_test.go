package cluster

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

// benchClients is how many clients, each with a connection of its own, create
// at a time: the figure of the budget.
const benchClients = 16

const protobufType = "application/vnd.kubernetes.protobuf"

// BenchmarkCreate measures durable creates through TLS, client included.
func BenchmarkCreate(b *testing.B) {
	for _, kind := range []struct {
		name   string
		create func(ctx context.Context, c kubernetes.Interface, ns, name string) error
	}{
		{"configmaps", func(ctx context.Context, c kubernetes.Interface, ns, name string) error {
			_, err := c.CoreV1().ConfigMaps(ns).Create(ctx, configMap(name, map[string]string{"key": "a value of moderate length", "other": "another"}), metav1.CreateOptions{})
			return err
		}},
		{"secrets", func(ctx context.Context, c kubernetes.Interface, ns, name string) error {
			_, err := c.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name},
				StringData: map[string]string{"key": "a value of moderate length", "other": "another"}}, metav1.CreateOptions{})
			return err
		}},
		{"pods", func(ctx context.Context, c kubernetes.Interface, ns, name string) error {
			_, err := c.CoreV1().Pods(ns).Create(ctx, benchPod(name), metav1.CreateOptions{})
			return err
		}},
	} {
		for _, encoding := range []string{"json", "protobuf"} {
			b.Run(kind.name+"/"+encoding, func(b *testing.B) {
				s := newServer(b)
				// A namespace that no controller watches closely, with what admission asks for.
				ns := s.newNamespace(b)
				if _, err := s.client.CoreV1().ServiceAccounts(ns).Create(b.Context(),
					&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
					eventually(b, "service account", func() (bool, error) {
						_, err := s.client.CoreV1().ServiceAccounts(ns).Get(b.Context(), "default", metav1.GetOptions{})
						return err == nil, err
					})
				}
				clients := benchmarkClients(b, s.config, encoding == "protobuf")
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				began, cpu := time.Now(), cpuTime(b)
				for _, c := range clients {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if err := kind.create(b.Context(), c, ns, fmt.Sprintf("o-%08d", i)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "creates/s")
			})
		}
	}
}

// cpuTime is what this process has used: server and clients together. On a busy
// machine it says more than the rate.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkClients(b *testing.B, config *rest.Config, protobuf bool) []kubernetes.Interface {
	b.Helper()
	var out []kubernetes.Interface
	for range benchClients {
		c := rest.CopyConfig(config)
		c.Dial = (&net.Dialer{}).DialContext // no sharing of connections
		if protobuf {
			c.ContentType, c.AcceptContentTypes = protobufType, protobufType
		}
		client, err := kubernetes.NewForConfig(c)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.CoreV1().Namespaces().Get(b.Context(), "default", metav1.GetOptions{}); err != nil {
			b.Fatal(err)
		}
		out = append(out, client)
	}
	return out
}

// benchPod is about as large as what a Deployment makes. No scheduler
// takes part.
func benchPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web", "pod-template-hash": "5d89f7c9b4", "tier": "front"},
			Annotations: map[string]string{"example.com/a": "some annotation value", "example.com/b": "another value of moderate length"}},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Volumes: []corev1.Volume{{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}}}}},
			Containers: []corev1.Container{
				{Name: "web", Image: "registry.example.com/team/web:1.2.3", Command: []string{"/bin/web", "--port=8080", "--verbose"},
					Env:          []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
					Ports:        []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
					Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
					VolumeMounts: []corev1.VolumeMount{{Name: "cfg", MountPath: "/etc/web", ReadOnly: true}}},
				{Name: "side", Image: "registry.example.com/team/side:4"},
			},
			TerminationGracePeriodSeconds: ptr.To[int64](30),
		},
	}
}
