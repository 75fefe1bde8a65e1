package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/objects"
	containers "github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

const maxImages = 50 // in a Node's status, the largest ones

// self keeps this node's Node object: it is created if it is missing at
// start, and its status is written when it differs from what is the case.
type self struct {
	a        *Agent
	recorder record.EventRecorder
	wake     chan struct{}

	mu       sync.Mutex
	obj      *v1.Node // as last seen or written
	deleted  bool     // by an administrator; the next start registers again
	pressure pressure
	broken   string // why the runtime cannot be used
	images   []v1.ContainerImage

	// What run last wrote, and when; no other goroutine has it.
	said   v1.NodeStatus
	saidAt time.Time
}

func newSelf(a *Agent, r record.EventRecorder) *self {
	return &self{a: a, recorder: r, wake: make(chan struct{}, 1)}
}

func (s *self) node() *v1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.obj
}

func (s *self) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// setPressure tells what the machine is short of.
func (s *self) setPressure(p pressure) {
	s.mu.Lock()
	changed := s.pressure != p
	s.pressure = p
	s.mu.Unlock()
	if changed {
		s.poke()
	}
}

// setRuntime tells why the runtime cannot be used; nil if it can.
func (s *self) setRuntime(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	changed := s.broken != text
	s.broken = text
	s.mu.Unlock()
	if changed {
		s.poke()
	}
}

// setImages tells which images the node has.
func (s *self) setImages(images []v1.ContainerImage) {
	s.mu.Lock()
	changed := !equality.Semantic.DeepEqual(s.images, images)
	s.images = images
	s.mu.Unlock()
	if changed {
		s.poke()
	}
}

// correctEvery is how often somebody is corrected who goes on writing something
// else, as a leader that does not hear this node in the gossip.
const correctEvery = time.Second

// run registers the node and then follows it: when its pod network is there
// it becomes Ready, and whoever writes something else into the node's part of
// the status is corrected, at most once in correctEvery.
func (s *self) run(ctx context.Context) error {
	if err := s.register(ctx); err != nil {
		return err
	}
	s.event(v1.EventTypeNormal, "Starting", "Starting kubelet.")
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.follow(ctx) })
	pause := time.Duration(0)
	for {
		again, err := s.write(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			pause = min(max(2*pause, 200*time.Millisecond), 10*time.Second)
			s.a.cfg.Logger.Warn("writing the node's status, trying again", "err", err, "in", pause)
			again = pause
		} else {
			pause = 0
		}
		wake, later := s.wake, (<-chan time.Time)(nil)
		if again > 0 {
			wake, later = nil, time.After(again)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-later:
		}
	}
}

// register creates the Node or takes the one that is there.
func (s *self) register(ctx context.Context) error {
	nodes := s.a.client.CoreV1().Nodes()
	pause := 50 * time.Millisecond
	for {
		obj, err := nodes.Get(ctx, s.a.cfg.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			obj, err = nodes.Create(ctx, s.fresh(), metav1.CreateOptions{})
		} else if err == nil {
			obj, err = s.relabel(ctx, obj)
		}
		if err == nil {
			s.see(obj)
			return nil
		}
		if apierrors.IsInvalid(err) {
			return fmt.Errorf("registering node %s: %w", s.a.cfg.Name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.a.cfg.Logger.Debug("registering the node, trying again", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

func (s *self) labels() map[string]string {
	info := s.a.machine.info
	l := map[string]string{
		v1.LabelHostname: s.a.machine.hostname, v1.LabelOSStable: info.OperatingSystem, v1.LabelArchStable: info.Architecture,
		"beta.kubernetes.io/os": info.OperatingSystem, "beta.kubernetes.io/arch": info.Architecture,
		v1.LabelInstanceTypeStable: "skiff",
	}
	maps.Copy(l, s.a.cfg.Labels)
	return l
}

func (s *self) fresh() *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.a.cfg.Name, Labels: s.labels(), Annotations: s.annotations()}, Spec: v1.NodeSpec{Taints: slices.Clone(s.a.cfg.Taints)}}
	n.Status = s.status(n, metav1.Now())
	return n
}

// annotations tell the provisioner of volumes where and how large they may be.
func (s *self) annotations() map[string]string {
	if s.a.local == nil {
		return nil
	}
	a := map[string]string{volume.AnnotationLocalPath: s.a.local.Root()}
	if size := s.a.local.Capacity(); size > 0 {
		a[volume.AnnotationLocalCapacity] = strconv.FormatInt(size, 10)
	}
	return a
}

// relabel puts the configured labels and the node's own annotations on a Node
// that is there already.
func (s *self) relabel(ctx context.Context, obj *v1.Node) (*v1.Node, error) {
	want := maps.Clone(obj.Labels)
	if want == nil {
		want = map[string]string{}
	}
	maps.Copy(want, s.labels())
	notes := maps.Clone(obj.Annotations)
	if notes == nil {
		notes = map[string]string{}
	}
	maps.Copy(notes, s.annotations())
	if maps.Equal(want, obj.Labels) && maps.Equal(notes, obj.Annotations) {
		return obj, nil
	}
	next := obj.DeepCopy()
	next.Labels, next.Annotations = want, notes
	return s.a.client.CoreV1().Nodes().Update(ctx, next, metav1.UpdateOptions{})
}

// see takes in the newest object.
func (s *self) see(obj *v1.Node) {
	obj.ManagedFields = nil
	s.mu.Lock()
	had := s.obj
	if had == nil || !older(obj, had) {
		s.obj, s.deleted = obj, false
	} else {
		had = obj // it is not news
	}
	s.mu.Unlock()
	if had != nil && had.Spec.Unschedulable != obj.Spec.Unschedulable {
		reason := "NodeSchedulable"
		if obj.Spec.Unschedulable {
			reason = "NodeNotSchedulable"
		}
		s.isNow(reason)
	}
	s.poke()
}

func older(a, b *v1.Node) bool {
	x, err1 := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, err2 := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return err1 == nil && err2 == nil && x < y
}

func (s *self) follow(ctx context.Context) {
	lw := objects.Named(s.a.client.CoreV1().Nodes(), s.a.cfg.Name)
	reflect(ctx, s.a.client, s.a.cfg.Logger, "node", lw, &v1.Node{}, selfStore{s})
}

type selfStore struct{ s *self }

func (t selfStore) Add(obj any) error {
	if n, ok := obj.(*v1.Node); ok && n.Name == t.s.a.cfg.Name {
		t.s.see(n)
	}
	return nil
}
func (t selfStore) Update(obj any) error { return t.Add(obj) }
func (t selfStore) Resync() error        { return nil }
func (t selfStore) Delete(obj any) error {
	if n, ok := obj.(*v1.Node); ok && n.Name == t.s.a.cfg.Name {
		t.s.mu.Lock()
		t.s.deleted = true
		t.s.mu.Unlock()
		t.s.a.cfg.Logger.Warn("the Node object was deleted; it is registered again when the agent starts next")
	}
	return nil
}
func (t selfStore) Replace(list []any, _ string) error {
	for _, obj := range list {
		_ = t.Add(obj)
	}
	return nil
}

// write brings the status in line, if it is not. It waits with what it has just
// written already, and returns for how long.
func (s *self) write(ctx context.Context) (again time.Duration, err error) {
	s.mu.Lock()
	obj, deleted := s.obj, s.deleted
	s.mu.Unlock()
	if deleted {
		return 0, nil
	}
	want := s.status(obj, metav1.Now())
	if !same(want, obj.Status) {
		if left := correctEvery - time.Since(s.saidAt); left > 0 && same(timeless(want), timeless(s.said)) {
			return left, nil
		}
		next := obj.DeepCopy()
		next.Status = want
		after, err := s.a.client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return 0, nil // the watch tells
		case apierrors.IsConflict(err):
			fresh, err := s.a.client.CoreV1().Nodes().Get(ctx, s.a.cfg.Name, metav1.GetOptions{})
			if err != nil {
				return 0, fmt.Errorf("reading the node after a conflict: %w", err)
			}
			s.see(fresh)
			return 0, nil // see has woken us
		case err != nil:
			return 0, err
		}
		s.said, s.saidAt = want, time.Now()
		s.tell(obj.Status, want)
		s.see(after)
		obj = after
	}
	if ready(obj) {
		s.a.once.Do(func() { close(s.a.ready) })
	}
	return 0, nil
}

// timeless is a status without the times since when its conditions hold.
func timeless(st v1.NodeStatus) v1.NodeStatus {
	st.Conditions = slices.Clone(st.Conditions)
	for i := range st.Conditions {
		st.Conditions[i].LastTransitionTime = metav1.Time{}
	}
	return st
}

// same compares all but the times of heartbeats.
func same(a, b v1.NodeStatus) bool {
	strip := func(st v1.NodeStatus) v1.NodeStatus {
		st.Conditions = slices.Clone(st.Conditions)
		for i := range st.Conditions {
			st.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		return st
	}
	return equality.Semantic.DeepEqual(strip(a), strip(b))
}

func ready(n *v1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// status is what the Node should say.
func (s *self) status(n *v1.Node, now metav1.Time) v1.NodeStatus {
	s.mu.Lock()
	p, broken, images := s.pressure, s.broken, s.images
	s.mu.Unlock()
	st := *n.Status.DeepCopy()
	m := s.a.machine
	st.Capacity, st.Allocatable = maps.Clone(st.Capacity), maps.Clone(st.Allocatable)
	for _, set := range []struct {
		to   *v1.ResourceList
		from v1.ResourceList
	}{{&st.Capacity, m.capacity}, {&st.Allocatable, m.allocatable}} {
		if *set.to == nil {
			*set.to = v1.ResourceList{}
		}
		maps.Copy(*set.to, set.from) // what others added stays
	}
	st.NodeInfo = m.info
	st.Addresses = []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: s.a.cfg.NodeIP.Unmap().String()}}
	if s.a.cfg.ExternalIP.IsValid() {
		st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeExternalIP, Address: s.a.cfg.ExternalIP.Unmap().String()})
	}
	st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: m.hostname})
	if _, port, err := net.SplitHostPort(s.a.cfg.ListenAddr); err == nil {
		if p, err := strconv.ParseInt(port, 10, 32); err == nil {
			st.DaemonEndpoints.KubeletEndpoint.Port = int32(p)
		}
	}
	st.Images = images
	st.DeclaredFeatures = slices.Clone(declaredFeatures)
	st.RuntimeHandlers = handlers()
	strict := true
	st.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: &strict}
	conds := []v1.NodeCondition{
		condition(v1.NodeMemoryPressure, p.memory, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		condition(v1.NodeDiskPressure, p.disk, "KubeletHasDiskPressure", "kubelet has disk pressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		condition(v1.NodePIDPressure, p.pids, "KubeletHasInsufficientPID", "kubelet has insufficient PID available", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
	}
	if s.a.isClosing() {
		conds = append(conds, v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionFalse, Reason: "KubeletNotReady", Message: "node is shutting down"})
	} else if broken != "" {
		conds = append(conds, v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionFalse, Reason: "KubeletNotReady",
			Message: "container runtime is down: " + broken})
	} else if n.Spec.PodCIDR != "" {
		conds = append(conds, v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"})
	} else {
		conds = append(conds, v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionFalse, Reason: "KubeletNotReady",
			Message: "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node has no pod CIDR yet"})
	}
	var out []v1.NodeCondition
	for _, c := range conds {
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		for _, old := range n.Status.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	for _, old := range n.Status.Conditions {
		if !slices.ContainsFunc(out, func(c v1.NodeCondition) bool { return c.Type == old.Type }) {
			out = append(out, old)
		}
	}
	st.Conditions = out
	return st
}

// handlers are the runtimes that a pod may ask for by its class, and what they
// can do; the one without a name is for pods without a class.
func handlers() (out []v1.NodeRuntimeHandler) {
	for _, name := range []string{"", "runc"} {
		recursive, users := containers.RecursiveReadonly(), false
		out = append(out, v1.NodeRuntimeHandler{Name: name,
			Features: &v1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &recursive, UserNamespaces: &users}})
	}
	return out
}
