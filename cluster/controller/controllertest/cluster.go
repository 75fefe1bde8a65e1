// Package controllertest runs controllers against client-go's fake clientset,
// which it completes with what the API server would add: names, UIDs, creation
// times and growing resource versions. It is for tests only.
package controllertest

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/cluster/controller"
)

// Cluster is a fake API with informers on it.
type Cluster struct {
	Client *fake.Clientset
	Config controller.Config
	Events *record.FakeRecorder

	serial atomic.Int64
	writes sync.Mutex                                       // makes check and write one step
	gone   map[schema.GroupVersionResource][]runtime.Object // guarded by writes
}

// Watchers of the fake panic when so many events wait for them; the hundred that it
// has room for are few for a process that is short of CPU.
func init() { watch.DefaultChanSize = 10000 }

// New returns a cluster that holds objs.
func New(t *testing.T, objs ...runtime.Object) *Cluster {
	t.Helper()
	c := &Cluster{Events: record.NewFakeRecorder(10000), gone: map[schema.GroupVersionResource][]runtime.Object{}}
	for _, obj := range objs {
		c.complete(obj)
	}
	c.Client = fake.NewClientset(objs...)
	c.Client.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if create, ok := a.(clienttesting.CreateAction); ok && a.GetSubresource() == "" {
			c.complete(create.GetObject())
		}
		return false, nil, nil
	})
	c.Client.PrependReactor("update", "*", c.update)
	c.Client.PrependReactor("patch", "*", c.patch)
	c.Client.PrependReactor("delete", "*", c.delete)
	c.Client.PrependWatchReactor("*", c.watch)
	c.Config = controller.Config{
		Client:    c.Client,
		Informers: informers.NewSharedInformerFactory(c.Client, 0),
		Events:    c.Events,
		Logger:    slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return c
}

// complete adds what the API server would add on creation.
func (c *Cluster) complete(obj runtime.Object) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return
	}
	n := c.serial.Add(1)
	if m.GetName() == "" && m.GetGenerateName() != "" {
		m.SetName(fmt.Sprintf("%sx%04d", m.GetGenerateName(), n))
	}
	if m.GetUID() == "" {
		m.SetUID(types.UID(fmt.Sprintf("uid-%d", n)))
	}
	if created := m.GetCreationTimestamp(); created.IsZero() {
		m.SetCreationTimestamp(metav1.Now())
	}
	c.touch(obj)
}

func (c *Cluster) touch(obj runtime.Object) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetResourceVersion(strconv.FormatInt(c.serial.Add(1), 10))
	}
}

// update does what the API server does with an update: it refuses what was
// changed in between, keeps status and the rest apart, and counts generations.
func (c *Cluster) update(a clienttesting.Action) (bool, runtime.Object, error) {
	u, ok := a.(clienttesting.UpdateAction)
	if !ok {
		return false, nil, nil
	}
	c.writes.Lock()
	defer c.writes.Unlock()
	next := u.GetObject().DeepCopyObject()
	m, err := meta.Accessor(next)
	if err != nil {
		return true, nil, err
	}
	old, err := c.Client.Tracker().Get(a.GetResource(), a.GetNamespace(), m.GetName())
	if err != nil {
		return true, nil, err
	}
	before, err := meta.Accessor(old)
	if err != nil {
		return true, nil, err
	}
	if v := m.GetResourceVersion(); v != "" && v != before.GetResourceVersion() {
		return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), m.GetName(), fmt.Errorf("object has been modified"))
	}
	if a.GetSubresource() == "status" {
		next = withStatusOf(old, next)
	} else if field(old, "Status").IsValid() && a.GetResource().Resource != "pods" && a.GetResource().Resource != "nodes" {
		next = withStatusOf(next, old) // tests play kubelet by plain updates
	}
	return true, next, c.store(a, old, next)
}

// patch applies a patch, and counts versions, which the fake does not.
func (c *Cluster) patch(a clienttesting.Action) (bool, runtime.Object, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	p, ok := a.(clienttesting.PatchAction)
	if !ok {
		return false, nil, nil
	}
	old, err := c.Client.Tracker().Get(a.GetResource(), a.GetNamespace(), p.GetName())
	if err != nil {
		return true, nil, err
	}
	_, next, err := clienttesting.ObjectReaction(c.Client.Tracker())(a)
	if err != nil {
		return true, nil, err
	}
	next = next.DeepCopyObject()
	return true, next, c.store(a, old, next)
}

// delete remembers what is deleted, for watch.
func (c *Cluster) delete(a clienttesting.Action) (bool, runtime.Object, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	handled, out, err := false, runtime.Object(nil), error(nil)
	if d, ok := a.(clienttesting.DeleteAction); ok {
		old, gerr := c.Client.Tracker().Get(a.GetResource(), a.GetNamespace(), d.GetName())
		if handled, out, err = clienttesting.ObjectReaction(c.Client.Tracker())(a); gerr == nil && err == nil {
			c.gone[a.GetResource()] = append(c.gone[a.GetResource()], old)
		}
	}
	return handled, out, err
}

// watch begins a watch which, unlike the fake's own, also tells of what was deleted
// since the list before it; an informer would have that for ever.
func (c *Cluster) watch(a clienttesting.Action) (bool, watch.Interface, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	var opts metav1.ListOptions
	if w, ok := a.(clienttesting.WatchActionImpl); ok {
		opts = w.ListOptions
	}
	w, err := c.Client.Tracker().Watch(a.GetResource(), a.GetNamespace(), opts)
	if err != nil {
		return true, nil, err
	}
	for _, obj := range c.gone[a.GetResource()] {
		m, err := meta.Accessor(obj)
		if err != nil || a.GetNamespace() != "" && m.GetNamespace() != a.GetNamespace() {
			continue
		}
		if _, err := c.Client.Tracker().Get(a.GetResource(), m.GetNamespace(), m.GetName()); apierrors.IsNotFound(err) {
			w.(*watch.RaceFreeFakeWatcher).Delete(obj)
		}
	}
	return true, w, nil
}

func (c *Cluster) store(a clienttesting.Action, old, next runtime.Object) error {
	if spec := field(old, "Spec"); spec.IsValid() && !equality.Semantic.DeepEqual(spec.Interface(), field(next, "Spec").Interface()) {
		if m, err := meta.Accessor(next); err == nil {
			m.SetGeneration(m.GetGeneration() + 1)
		}
	}
	c.touch(next)
	return c.Client.Tracker().Update(a.GetResource(), next, a.GetNamespace())
}

func withStatusOf(base, from runtime.Object) runtime.Object {
	out := base.DeepCopyObject()
	field(out, "Status").Set(field(from, "Status"))
	return out
}

func field(obj runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

// Run starts the informers and run, and stops both when the test ends. It fails
// the test if run returns an error.
func (c *Cluster) Run(t *testing.T, run ...func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(run))
	for _, r := range run {
		go func() { done <- r(ctx) }()
	}
	c.Config.Informers.StartWithContext(ctx)
	t.Cleanup(func() {
		cancel()
		for range run {
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		c.Config.Informers.Shutdown()
	})
}

// Writes returns the verbs and resources of all writes so far, events left out.
func (c *Cluster) Writes() []string {
	var out []string
	for _, a := range c.Client.Actions() {
		switch a.GetVerb() {
		case "get", "list", "watch":
		default:
			r := a.GetResource().Resource
			if s := a.GetSubresource(); s != "" {
				r += "/" + s
			}
			out = append(out, a.GetVerb()+" "+r)
		}
	}
	return out
}

// Eventually waits until check returns "", and fails the test with what it
// returned last if that takes longer than a minute.
func Eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		why := check()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not after a minute: %s", why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Quiet fails the test if anything is written within d from now on. Where something
// was done before, see [Cluster.Settles].
func (c *Cluster) Quiet(t *testing.T, d time.Duration) {
	t.Helper()
	before := len(c.Writes())
	time.Sleep(d)
	if now := c.Writes(); len(now) > before {
		t.Errorf("writes while idle: %v", now[before:])
	}
}

// Settles waits until nothing was written for d, which follows what the controller
// did last on what it knew then, and fails the test if a minute passes before.
func (c *Cluster) Settles(t *testing.T, d time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		before := len(c.Writes())
		time.Sleep(d)
		now := c.Writes()
		if len(now) == before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still writes after a minute: %v", now[before:])
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
