package cluster

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm"
)

// What a server cannot save, as on a full disk, ends neither its start nor it.
func TestNothingCanBeSaved(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	startServer(t, c).stop()
	kubeconfig := filepath.Join(c.DataDir, "admin.kubeconfig")
	if err := os.Remove(kubeconfig); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(kubeconfig, "x"), filepath.Join(c.DataDir, "cluster.json.new")} { // in the way
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("it does not start: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("it does not start")
	}
	v := s.Settings()
	v.PodEvictionTimeout = 7 * time.Second
	if err := s.putSettings(ctx, v, fsm.Any); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "it takes the settings over", func() bool { return s.Settings() == v })
	select {
	case err := <-ended:
		ended <- nil
		t.Errorf("it ended with %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}

// Nothing given is what the cluster has; no time at all is a value like others.
func TestPodEvictionTimeout(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	for _, step := range []struct {
		given *time.Duration
		want  time.Duration
	}{
		{nil, DefaultPodEvictionTimeout},
		{ptr.To(time.Duration(0)), 0},
		{nil, 0},
		{ptr.To(time.Minute), time.Minute},
	} {
		c.PodEvictionTimeout = step.given
		s := startServer(t, c)
		within(t, 20*time.Second, "it has its timeout in the state", func() bool {
			var v membership.Settings
			kv, ok := s.state.View().Get(settingsKey)
			return ok && json.Unmarshal(kv.Value, &v) == nil && v.PodEvictionTimeout == step.want && s.Settings() == v
		})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}}}
		var err error
		within(t, 20*time.Second, "a pod is created", func() bool { // its service account comes soon
			var made *corev1.Pod
			if made, err = s.client.CoreV1().Pods("default").Create(context.Background(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err == nil {
				pod = made
			}
			return err == nil
		})
		if n := len(pod.Spec.Tolerations); n != 2 {
			t.Fatalf("%d tolerations", n)
		}
		for _, x := range pod.Spec.Tolerations {
			if x.TolerationSeconds == nil || *x.TolerationSeconds != int64(step.want/time.Second) {
				t.Errorf("given %v: pods tolerate %v", step.given, x)
			}
		}
		s.stop()
	}
	c.PodEvictionTimeout = ptr.To(-time.Second)
	if _, err := New(c); err == nil {
		t.Error("a negative timeout is taken")
	}
}
