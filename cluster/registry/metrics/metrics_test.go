package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
)

// fakeNode answers for one node: CPU counters grow by what they are told to per
// second since begin.
type fakeNode struct {
	begin  time.Time
	asked  atomic.Int32
	broken atomic.Bool
	hangs  bool
	text   func(age time.Duration, ms int64) string
}

func (f *fakeNode) RoundTrip(r *http.Request) (*http.Response, error) {
	f.asked.Add(1)
	if f.hangs {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if r.URL.Path != "/metrics/resource" {
		return nil, fmt.Errorf("unexpected path %s", r.URL.Path)
	}
	code, body := http.StatusOK, ""
	if f.broken.Load() {
		code, body = http.StatusForbidden, "not you"
	} else {
		now := time.Now()
		body = f.text(now.Sub(f.begin), now.UnixMilli())
	}
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code, " ", http.StatusText(code)), Body: io.NopCloser(strings.NewReader(body))}, nil
}

type fakeAccess map[string]*fakeNode

func (f fakeAccess) NodeAPI(_ context.Context, name string) (*nodeproxy.Endpoint, error) {
	n, ok := f[name]
	if !ok {
		return nil, errors.New("no such node")
	}
	return &nodeproxy.Endpoint{URL: &url.URL{Scheme: "https", Host: name}, Transport: n}, nil
}

type fakeReader struct {
	rest.TableConvertor
	list runtime.Object
	got  *metainternalversion.ListOptions
}

func (*fakeReader) New() runtime.Object     { return nil }
func (*fakeReader) NewList() runtime.Object { return nil }
func (*fakeReader) Destroy()                {}

func (f *fakeReader) List(_ context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	f.got = o
	return f.list, nil
}

func (f *fakeReader) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	switch l := f.list.(type) {
	case *corev1.NodeList:
		for i := range l.Items {
			if l.Items[i].Name == name {
				return &l.Items[i], nil
			}
		}
	case *corev1.PodList:
		for i := range l.Items {
			if l.Items[i].Name == name {
				return &l.Items[i], nil
			}
		}
	}
	return nil, apierrors.NewNotFound(corev1.Resource("things"), name)
}

func node(name string, ready corev1.ConditionStatus) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "a"}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func pod(name, on string, phase corev1.PodPhase, containers ...string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: on}, Status: corev1.PodStatus{Phase: phase}}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c})
	}
	return p
}

// steady has a node at two CPUs; pod web with container a at half a CPU since an
// hour, b at a tenth, and c that began with the sample.
func steady(age time.Duration, ms int64) string {
	s := age.Seconds()
	start := float64(ms)/1e3 - s - 3600
	return fmt.Sprintf(`# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total %f %d
# TYPE node_memory_working_set_bytes gauge
node_memory_working_set_bytes 1073741824 %d
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="a",namespace="ns",pod="web"} %f %d
container_cpu_usage_seconds_total{container="b",namespace="ns",pod="web"} %f %d
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="web"} 0 %d
# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{container="a",namespace="ns",pod="web"} 1048576 %d
container_memory_working_set_bytes{container="b",namespace="ns",pod="web"} 2097152 %d
container_memory_working_set_bytes{container="c",namespace="ns",pod="web"} 1 %d
# TYPE container_start_time_seconds gauge
container_start_time_seconds{container="a",namespace="ns",pod="web"} %f
container_start_time_seconds{container="b",namespace="ns",pod="web"} %f
container_start_time_seconds{container="c",namespace="ns",pod="web"} %f
`, 1000+2*s, ms, ms, 1800+s/2, ms, 360+s/10, ms, ms, ms, ms, ms, start, start, float64(ms)/1e3)
}

func storages(t *testing.T, nodeList []corev1.Node, podList []corev1.Pod, a fakeAccess) (*nodes, *pods) {
	t.Helper()
	m, err := NewStorage(Config{Nodes: &fakeReader{list: &corev1.NodeList{Items: nodeList}}, Pods: &fakeReader{list: &corev1.PodList{Items: podList}},
		Access: a, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return m["nodes"].(*nodes), m["pods"].(*pods)
}

func TestFirstAnswerHasRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n1 := &fakeNode{begin: time.Now(), text: steady}
		gone := &fakeNode{hangs: true}
		silent := &fakeNode{hangs: true}
		ns, ps := storages(t,
			[]corev1.Node{node("n1", corev1.ConditionTrue), node("gone", corev1.ConditionUnknown), node("silent", corev1.ConditionTrue)},
			[]corev1.Pod{pod("web", "n1", corev1.PodRunning, "a", "b", "c"), pod("done", "n1", corev1.PodSucceeded, "a"), pod("new", "", corev1.PodPending, "a"), pod("young", "n1", corev1.PodPending, "a")},
			fakeAccess{"n1": n1, "gone": gone, "silent": silent})
		began := time.Now()
		obj, err := ps.List(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != firstWindow {
			t.Errorf("the first answer took %s", took)
		}
		list := obj.(*metricsv1beta1.PodMetricsList)
		if len(list.Items) != 1 {
			t.Fatalf("got %d pods: %+v", len(list.Items), list.Items)
		}
		m := list.Items[0]
		if m.Name != "web" || m.Namespace != "ns" || m.Labels["app"] != "web" || m.Window.Duration != time.Second || !m.Timestamp.Time.Equal(time.Now()) {
			t.Errorf("got %+v", m)
		}
		if len(m.Containers) != 2 {
			t.Fatalf("containers: %+v (c has run for no time)", m.Containers)
		}
		if c := m.Containers[0]; c.Name != "a" || c.Usage.Cpu().MilliValue() != 500 || c.Usage.Memory().Value() != 1<<20 {
			t.Errorf("a: %+v", c)
		}
		if c := m.Containers[1]; c.Name != "b" || c.Usage.Cpu().MilliValue() != 100 || c.Usage.Memory().Value() != 2<<20 {
			t.Errorf("b: %+v", c)
		}
		if sum := total(&m); sum.Cpu().MilliValue() != 600 || sum.Memory().Value() != 3<<20 {
			t.Errorf("total: %v", sum)
		}

		// Nodes come from the same two samples; the silent one is waited for, the lost
		// one is not.
		began = time.Now()
		if obj, err = ns.List(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != deadline {
			t.Errorf("with a silent node it took %s", took)
		}
		if gone.asked.Load() != 0 || n1.asked.Load() != 2 {
			t.Errorf("asked: gone %d, n1 %d", gone.asked.Load(), n1.asked.Load())
		}
		nl := obj.(*metricsv1beta1.NodeMetricsList)
		if len(nl.Items) != 1 || nl.Items[0].Name != "n1" || nl.Items[0].Usage.Cpu().MilliValue() != 2000 ||
			nl.Items[0].Usage.Memory().String() != "1Gi" || nl.Items[0].Labels["zone"] != "a" {
			t.Errorf("nodes: %+v", nl.Items)
		}
		_, err = ns.Get(t.Context(), "silent", nil)
		if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "no answer in 5s") {
			t.Errorf("silent: %v", err)
		}
	})
}

func TestNodesAreNotAskedMoreThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n1 := &fakeNode{begin: time.Now(), text: steady}
		_, ps := storages(t, []corev1.Node{node("n1", corev1.ConditionTrue)}, []corev1.Pod{pod("web", "n1", corev1.PodRunning, "a")}, fakeAccess{"n1": n1})
		get := func() *metricsv1beta1.PodMetrics {
			t.Helper()
			obj, err := ps.Get(t.Context(), "web", nil)
			if err != nil {
				t.Fatal(err)
			}
			return obj.(*metricsv1beta1.PodMetrics)
		}
		for range 3 { // at once: one of them asks
			go func() { _, _ = ps.Get(context.Background(), "web", nil) }()
		}
		get()
		synctest.Wait()
		for _, step := range []struct {
			wait, window time.Duration
			asked        int32
		}{
			{0, time.Second, 2},
			{freshFor - 1, time.Second, 2},
			{1, freshFor, 3},
			{30 * time.Second, 30 * time.Second, 4},
			{longestWindow + time.Second, firstWindow, 6}, // too old to say what is now
		} {
			time.Sleep(step.wait)
			if m := get(); m.Window.Duration != step.window || n1.asked.Load() != step.asked || m.Containers[0].Usage.Cpu().MilliValue() != 500 {
				t.Errorf("after %s: window %s, asked %d times, %s", step.wait, m.Window.Duration, n1.asked.Load(), m.Containers[0].Usage.Cpu())
			}
		}
		before := n1.asked.Load()
		time.Sleep(time.Hour)
		if n1.asked.Load() != before {
			t.Error("the node is asked though nobody wants to know")
		}
		n1.broken.Store(true)
		_, err := ps.Get(t.Context(), "web", nil)
		if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "not you") {
			t.Errorf("a node that refuses: %v", err)
		}
		n1.broken.Store(false)
		time.Sleep(freshFor)
		get()
	})
}

func TestRestartedContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		restart := begin.Add(5 * time.Second)
		n1 := &fakeNode{begin: begin, text: func(age time.Duration, ms int64) string {
			start, used := begin.Add(-time.Hour), 1000+age.Seconds()
			if time.Now().After(restart) {
				start, used = restart, time.Since(restart).Seconds()/4
			}
			return fmt.Sprintf("container_cpu_usage_seconds_total{container=\"a\",namespace=\"ns\",pod=\"web\"} %f %d\ncontainer_memory_working_set_bytes{container=\"a\",namespace=\"ns\",pod=\"web\"} 1 %d\ncontainer_start_time_seconds{container=\"a\",namespace=\"ns\",pod=\"web\"} %f\n",
				used, ms, ms, float64(start.UnixMilli())/1e3)
		}}
		_, ps := storages(t, nil, []corev1.Pod{pod("web", "n1", corev1.PodRunning, "a")}, fakeAccess{"n1": n1})
		for _, want := range []int64{1000, 250} {
			obj, err := ps.Get(t.Context(), "web", nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := obj.(*metricsv1beta1.PodMetrics).Containers[0].Usage.Cpu().MilliValue(); got != want {
				t.Errorf("got %dm, want %dm", got, want)
			}
			time.Sleep(15 * time.Second)
		}
	})
}

func TestUnreadableAnswer(t *testing.T) {
	n1 := &fakeNode{begin: time.Now(), text: func(time.Duration, int64) string { return "node_cpu_usage_seconds_total{ 1\n" }}
	ns, ps := storages(t, []corev1.Node{node("n1", corev1.ConditionTrue)}, nil, fakeAccess{"n1": n1})
	if _, err := ns.Get(t.Context(), "n1", nil); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
	if _, err := ns.Get(t.Context(), "other", nil); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "nodes.metrics.k8s.io") {
		t.Errorf("got %v", err)
	}
	if _, err := ps.Get(t.Context(), "other", nil); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "pods.metrics.k8s.io") {
		t.Errorf("got %v", err)
	}
}
