package pod

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	clienttest "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/runtime"
)

func TestPressedNodesTakeOnlyWhatTheyMust(t *testing.T) {
	memory, disk := v1.NodeMemoryPressure, v1.NodeDiskPressure
	burstable := func(p *v1.Pod) {
		p.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Mi")}}}}
	}
	for _, tc := range []struct {
		name  string
		conds []v1.NodeConditionType
		pod   func(*v1.Pod)
		want  string
	}{
		{"nothing", nil, func(*v1.Pod) {}, ""},
		{"memory, best effort", []v1.NodeConditionType{memory}, func(*v1.Pod) {}, "The node had condition: [MemoryPressure]. "},
		{"memory, burstable", []v1.NodeConditionType{memory}, burstable, ""},
		{"memory, tolerated", []v1.NodeConditionType{memory}, func(p *v1.Pod) {
			p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}}
		}, ""},
		{"memory, another taint tolerated", []v1.NodeConditionType{memory}, func(p *v1.Pod) {
			p.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeDiskPressure, Operator: v1.TolerationOpExists}}
		}, "The node had condition: [MemoryPressure]. "},
		{"disk, burstable", []v1.NodeConditionType{disk}, burstable, "The node had condition: [DiskPressure]. "},
		{"both", []v1.NodeConditionType{disk, memory}, burstable, "The node had condition: [DiskPressure MemoryPressure]. "},
		{"disk, critical", []v1.NodeConditionType{disk}, func(p *v1.Pod) { p.Spec.Priority = ptr.To[int32](2_000_000_000) }, ""},
		{"disk, static", []v1.NodeConditionType{disk}, func(p *v1.Pod) {
			p.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
		}, ""},
		{"disk, mirror", []v1.NodeConditionType{disk}, func(p *v1.Pod) { p.Annotations = map[string]string{v1.MirrorPodAnnotationKey: "x"} }, ""},
	} {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
		tc.pod(p)
		reason, got := pressed(p, tc.conds)
		if got != tc.want || (reason == Evicted) != (tc.want != "") {
			t.Errorf("%s: %q %q, want %q", tc.name, reason, got, tc.want)
		}
	}
}

// TestEvictedPodGivesRoomThoughNothingCanBeWritten is about the only server's own
// disk, full of the files of a pod that was evicted for it.
func TestEvictedPodGivesRoomThoughNothingCanBeWritten(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
	}))
	w.await("a", "running", isRunning)
	v, err := w.m.Find("default", "a", "")
	if err != nil {
		t.Fatal(err)
	}
	dir, ok := v.Volumes.Path("v")
	if !ok {
		t.Fatal("no volume")
	}
	var full atomic.Bool
	full.Store(true)
	w.client.PrependReactor("update", "pods", func(clienttest.Action) (bool, apiruntime.Object, error) {
		return full.Load(), nil, apierrors.NewServiceUnavailable("the disk of the leading server is full")
	})
	w.m.End("uid-a", Eviction{Reason: Evicted, Message: "The node was low on resource: ephemeral-storage. ", Grace: 1, Disruption: true})
	w.eventually("its containers end", func() bool {
		return len(w.rt.box("uid-a").Containers()) > 0 && w.rt.box("uid-a").Containers()[0].State == runtime.Exited
	})
	w.pass(3 * time.Second)
	w.eventually("its volume is gone", func() bool { _, err := os.Stat(dir); return errors.Is(err, fs.ErrNotExist) })
	if w.rt.box("uid-a") == nil {
		t.Error("its sandbox is gone before its last status is safe")
	}
	full.Store(false)
	p := w.await("a", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if p.Status.Reason != Evicted {
		t.Errorf("%+v", p.Status)
	}
	w.eventually("its sandbox is removed", func() bool { return w.rt.box("uid-a") == nil })
}

// TestShortestGraceCounts is about pods that end already when somebody else ends them,
// too: an eviction, a shutdown of the machine, a user.
func TestShortestGraceCounts(t *testing.T) {
	evict := func(grace int64) func(*world) {
		return func(w *world) { w.m.End("uid-a", Eviction{Reason: Evicted, Message: "m", Grace: grace}) }
	}
	remove := func(grace int64) func(*world) { return func(w *world) { w.remove("a", grace) } }
	for _, tc := range []struct {
		name        string
		first, then func(*world)
		lives, ends time.Duration // since then
	}{
		{"deleted, then evicted at once", remove(3600), evict(1), 0, 5 * time.Second},
		{"deleted, then evicted with time", remove(3600), evict(60), 50 * time.Second, 61 * time.Second},
		{"evicted with time, then at once", evict(300), evict(1), 0, 5 * time.Second},
		{"evicted with time, then deleted", evict(300), remove(200), 20 * time.Second, 110 * time.Second},
		{"evicted, then with more time", evict(200), evict(3000), 20 * time.Second, 110 * time.Second},
		{"deleted, then evicted with more time", remove(200), evict(3000), 20 * time.Second, 110 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			p := w.pod("a", func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](10_000) })
			w.rt.boxes["uid-a"] = &fakeSandbox{r: w.rt, signal: func(runtime.ContainerStatus, syscall.Signal) {}}
			w.add(p)
			w.await("a", "ready", isReady)
			box := w.rt.box("uid-a")
			killed := func() bool { return strings.Contains(box.asked(), "killed c") }
			looked := func() {
				done := make(chan struct{})
				w.m.workers["uid-a"].post(func() { close(done) })
				<-done
			}
			tc.first(w)
			w.eventually("asked to stop", func() bool { return strings.Contains(box.asked(), "terminated c") })
			w.pass(100 * time.Second)
			tc.then(w)
			looked()
			w.pass(tc.lives)
			looked()
			looked()
			if tc.lives > 0 && killed() {
				t.Error("killed too soon")
			}
			w.pass(tc.ends - tc.lives)
			w.eventually("killed", killed)
		})
	}
}
