package persistentvolume

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
	localpathcontroller "github.com/skiff-sh/skiff/cluster/controller/localpath"
	"github.com/skiff-sh/skiff/cluster/controller/volumeprotection"
	"github.com/skiff-sh/skiff/cluster/localpath"
)

type deleter struct{ asked atomic.Int64 }

func (d *deleter) DeleteVolume(context.Context, string, string) error {
	d.asked.Add(1)
	return nil
}

// term runs binder, provisioner and protection as a leader does, until the
// function it returns is called.
func term(t *testing.T, c *controllertest.Cluster, nodes *deleter) (end func()) {
	t.Helper()
	cfg := c.Config
	cfg.Informers = informers.NewSharedInformerFactory(c.Client, 0)
	binder, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	provisioner, err := localpathcontroller.New(localpathcontroller.Config{Config: cfg, Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	protection, err := volumeprotection.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{binder.Run, provisioner.Run, protection.Run} {
		go func() { done <- run(ctx) }()
	}
	cfg.Informers.StartWithContext(ctx)
	return func() {
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		cfg.Informers.Shutdown()
	}
}

// A leader that ends between any two writes of a volume's life leaves what the
// next one goes on with: the claim is bound to one volume, and the volume goes
// with it.
func TestLeaderEndsBetweenAnyTwoWrites(t *testing.T) {
	ctx := context.Background()
	met := 0
	for n := int64(0); ; n++ {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{localpath.RootAnnotation: "/x"}}}
		chosen := claim("c", "local-path", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Annotations["volume.kubernetes.io/selected-node"] = "a" })
		c := controllertest.New(t, node, class("local-path", localpath.Provisioner, storagev1.VolumeBindingWaitForFirstConsumer), chosen)
		var left atomic.Int64
		left.Store(1 << 40)
		c.Client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
			switch a.GetVerb() {
			case "create", "update", "patch", "delete":
				if left.Add(-1) < 0 {
					return true, nil, errors.New("the leader has ended")
				}
			}
			return false, nil, nil
		})
		nodes := &deleter{}
		// interrupted runs a term that ends after n writes, and another to the end.
		interrupted := func(check func() string) (ended bool) {
			t.Helper()
			left.Store(n)
			end := term(t, c, nodes)
			controllertest.Eventually(t, func() string {
				if left.Load() >= 0 && check() != "" {
					return "neither at its end nor done"
				}
				return ""
			})
			ended = left.Load() < 0
			end()
			left.Store(1 << 40)
			end = term(t, c, nodes)
			defer end()
			controllertest.Eventually(t, check)
			return ended
		}
		ended := interrupted(func() string {
			if got := show(c); got != "c=Bound:pvc-c pvc-c=Bound:c" {
				return fmt.Sprintf("after %d writes: %s", n, got)
			}
			cl, err := c.Client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "c", metav1.GetOptions{})
			if err != nil || cl.Annotations["pv.kubernetes.io/bind-completed"] == "" || len(cl.Finalizers) == 0 {
				return fmt.Sprintf("after %d writes: %v, %+v", n, err, cl)
			}
			return ""
		})
		// The claim goes; the fake does not know finalizers.
		if err := c.Client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), "default", "c"); err != nil {
			t.Fatal(err)
		}
		ended = interrupted(func() string {
			if got := show(c); got != "" || nodes.asked.Load() == 0 {
				return fmt.Sprintf("after %d writes of the end: %q, asked the node %d times", n, got, nodes.asked.Load())
			}
			return ""
		}) || ended
		if !ended {
			break
		}
		met++
	}
	if met < 5 {
		t.Errorf("only %d places were met", met)
	}
	t.Logf("%d places", met)
}
