package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttest "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/pod"
)

type nothing struct{}

func (nothing) HostPorts(context.Context, string, []pod.HostPort) error      { return nil }
func (nothing) Attach(context.Context, string, string) ([]netip.Addr, error) { return nil, nil }
func (nothing) Detach(context.Context, string) error                         { return nil }
func (nothing) Adopt(context.Context, []string) error                        { return nil }
func (nothing) DNS() (netip.Addr, string) {
	return netip.MustParseAddr("10.43.0.10"), "cluster.local"
}

type noRuntime struct{ pod.Runtime }

type noImages struct{ Images }

func (noImages) List() ([]*image.Image, error) { return nil, nil }

func config(t *testing.T) Config {
	return Config{Name: "n1", RESTConfig: &rest.Config{Host: "https://127.0.0.1:1"}, TLS: &tls.Config{MinVersion: tls.VersionTLS12},
		ListenAddr: ":10250", DataDir: t.TempDir(), StateDir: t.TempDir(), NodeIP: netip.MustParseAddr("192.0.2.1"),
		Labels: map[string]string{"zone": "a"}, Taints: []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}},
		Network: nothing{}, Runtime: noRuntime{}, Images: noImages{}, Version: "v1.37.2+skiff.1", RuntimeVersion: "1.2.3", Logger: slog.New(slog.DiscardHandler)}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Name: "Not A Name", MaxPods: -1})
	for _, want := range []string{"RESTConfig", "Network", "NodeIP", "Not A Name", "max pods -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

// api is a fake API that counts versions, as the agent expects of a real one.
func api(objs ...apiruntime.Object) (*fake.Clientset, func() int) {
	c := fake.NewSimpleClientset(objs...)
	var mu sync.Mutex
	rv, writes := 100, 0
	count := func(a clienttest.Action) (bool, apiruntime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		rv++
		obj := a.(clienttest.CreateAction).GetObject() // an update has it too
		if a.GetSubresource() == "status" {
			writes++
		}
		obj.(metav1.Object).SetResourceVersion(fmt.Sprint(rv))
		return false, nil, nil
	}
	c.PrependReactor("create", "nodes", count)
	c.PrependReactor("update", "nodes", count)
	return c, func() int { mu.Lock(); defer mu.Unlock(); return writes }
}

func TestNodeRegistersAndWritesOnChangeOnly(t *testing.T) {
	client, writes := api()
	a, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	a.client = client
	events := record.NewFakeRecorder(100)
	s := newSelf(a, events)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	get := func() *v1.Node {
		n, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return nil
		}
		return n
	}
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s; %+v", what, get())
			}
		}
	}
	await("registered", func() bool { return get() != nil })
	// The watch must be there before the fake API is changed.
	await("watched", func() bool {
		for _, act := range client.Actions() {
			if act.GetVerb() == "watch" {
				return true
			}
		}
		return false
	})
	n := get()
	if ready(n) {
		t.Error("Ready without a pod network")
	}
	if n.Labels[v1.LabelHostname] != "n1" || n.Labels["zone"] != "a" || len(n.Spec.Taints) != 1 || n.Status.NodeInfo.ContainerRuntimeVersion != "skiff://1.2.3" ||
		n.Status.DaemonEndpoints.KubeletEndpoint.Port != 10250 || n.Status.Capacity.Pods().Value() != 110 || n.Status.Allocatable.Memory().Cmp(*n.Status.Capacity.Memory()) >= 0 {
		t.Errorf("node %+v", n)
	}
	n = n.DeepCopy()
	n.Spec.PodCIDR = "10.42.0.0/24"
	if _, err := client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("ready", func() bool { return ready(get()) })
	select {
	case <-a.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the agent does not say that it is ready")
	}
	before := writes()
	s.poke()
	s.setPressure(pressure{})
	s.setImages(nil)
	s.setPressure(pressure{memory: true})
	await("memory pressure", func() bool {
		for _, c := range get().Status.Conditions {
			if c.Type == v1.NodeMemoryPressure && c.Status == v1.ConditionTrue && c.Reason == "KubeletHasInsufficientMemory" {
				return true
			}
		}
		return false
	})
	if got := writes() - before; got != 1 {
		t.Errorf("%d writes for one change", got)
	}
	s.setRuntime(errors.New("the shim is gone"))
	await("not ready without a runtime", func() bool {
		for _, c := range get().Status.Conditions {
			if c.Type == v1.NodeReady {
				return c.Status == v1.ConditionFalse && c.Message == "container runtime is down: the shim is gone"
			}
		}
		return false
	})
	s.setRuntime(nil)
	await("ready with a runtime", func() bool { return ready(get()) })
	// Somebody declares the node dead: it says that it is not, and does not shout.
	declared := 0
	declare := func() {
		t.Helper()
		n := get().DeepCopy()
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].Status = v1.ConditionUnknown
		}
		if _, err := client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		declared++
	}
	declare()
	await("ready again", func() bool { return ready(get()) })
	for end := time.Now().Add(correctEvery / 2); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ready(get()) {
			declare()
		}
	}
	if declared > 3 {
		t.Errorf("corrected %d times in half a second", declared-1)
	}
	await("ready in the end", func() bool { return ready(get()) })
	s.setPressure(pressure{})
	await("no memory pressure", func() bool {
		return slices.ContainsFunc(get().Status.Conditions, func(c v1.NodeCondition) bool {
			return c.Type == v1.NodeMemoryPressure && c.Status == v1.ConditionFalse
		})
	})
	n = get().DeepCopy()
	n.Spec.Unschedulable = true
	if _, err := client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"Starting Starting kubelet."} // more than one of each by what was declared
	for _, reason := range []string{"NodeReady", "NodeHasInsufficientMemory", "NodeNotReady", "NodeHasSufficientMemory", "NodeNotSchedulable"} {
		want = append(want, fmt.Sprintf("%s Node n1 status is now: %s", reason, reason))
	}
	for told := map[string]bool{}; len(told) < len(want); {
		select {
		case e := <-events.Events:
			told[e] = true
			if !slices.Contains(want, strings.TrimPrefix(e, "Normal ")) {
				t.Fatalf("event %q", e)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("events %v, want %q", told, want)
		}
	}
}

func TestExistingNodeKeepsWhatOthersWrote(t *testing.T) {
	client, _ := api(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "5", Labels: map[string]string{"mine": "x", "zone": "old"}},
		Spec:   v1.NodeSpec{PodCIDR: "10.42.0.0/24", Unschedulable: true},
		Status: v1.NodeStatus{NodeInfo: v1.NodeSystemInfo{BootID: "an earlier one"}, Capacity: v1.ResourceList{"example.com/gadget": *resourceOne()}, Conditions: []v1.NodeCondition{{Type: "NetworkUnavailable", Status: v1.ConditionFalse}}}})
	a, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	a.client = client
	events := record.NewFakeRecorder(100)
	s := newSelf(a, events)
	if err := s.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gadget := n.Status.Capacity["example.com/gadget"]
	if n.Labels["mine"] != "x" || n.Labels["zone"] != "a" || !n.Spec.Unschedulable || len(n.Spec.Taints) != 0 || gadget.Value() != 1 || len(n.Status.Conditions) != 5 || !ready(n) {
		t.Errorf("%+v", n)
	}
	if e := <-events.Events; !strings.HasPrefix(e, "Warning Rebooted Node n1 has been rebooted, boot id: ") {
		t.Errorf("event %q", e)
	}
}

func resourceOne() *resource.Quantity { return resource.NewQuantity(1, resource.DecimalSI) }
