package coordination

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

type fakeGossip struct {
	mu      sync.Mutex
	members []nodehealth.Member
	poked   chan struct{}
}

func (g *fakeGossip) Members() []nodehealth.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.members)
}

func (g *fakeGossip) Changes() (<-chan struct{}, func()) { return g.poked, func() {} }

func (g *fakeGossip) set(m ...nodehealth.Member) {
	g.mu.Lock()
	g.members = m
	g.mu.Unlock()
	g.poked <- struct{}{}
}

func TestNodeLeases(t *testing.T) {
	died := time.Unix(1000, 0)
	g := &fakeGossip{poked: make(chan struct{}, 9), members: []nodehealth.Member{{Name: "b"}, {Name: "a"},
		{Name: "dead", State: nodehealth.Dead, Since: died}, {Name: "left", State: nodehealth.Left, Since: died}}}
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{Gossip: g})
	if err != nil {
		t.Fatal(err)
	}
	s := m["leases"]
	in := func(ns string) context.Context {
		return registrytest.Context(ns, coordinationv1.SchemeGroupVersion.WithResource("leases"))
	}
	own := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "mine", Namespace: "default"}}
	if _, err := env.Create(in("default"), s, own.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	list := func(ns string, o *internalversion.ListOptions) string {
		t.Helper()
		obj, err := s.(rest.Lister).List(in(ns), o)
		if err != nil {
			t.Fatal(err)
		}
		l := obj.(*coordinationv1.LeaseList)
		names := ""
		for _, i := range l.Items {
			names += i.Namespace + "/" + i.Name + " "
		}
		if l.ResourceVersion == "" || l.ResourceVersion == "0" {
			t.Errorf("list of %q has version %q", ns, l.ResourceVersion)
		}
		return names
	}
	for _, tc := range []struct {
		ns   string
		o    *internalversion.ListOptions
		want string
	}{
		{"kube-node-lease", nil, "kube-node-lease/a kube-node-lease/b kube-node-lease/dead "},
		{"", nil, "default/mine kube-node-lease/a kube-node-lease/b kube-node-lease/dead "},
		{"default", nil, "default/mine "},
		{"kube-node-lease", &internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "b")}, "kube-node-lease/b "},
		{"", &internalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.namespace", "default")}, "default/mine "},
	} {
		if got := list(tc.ns, tc.o); got != tc.want {
			t.Errorf("list of %q with %+v: %s", tc.ns, tc.o, got)
		}
	}
	get := func(name string) (*coordinationv1.Lease, error) {
		obj, err := s.(rest.Getter).Get(in("kube-node-lease"), name, &metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return obj.(*coordinationv1.Lease), nil
	}
	a, err := get("a")
	if err != nil || time.Since(a.Spec.RenewTime.Time) > time.Minute || *a.Spec.HolderIdentity != "a" || *a.Spec.LeaseDurationSeconds != 40 || a.UID == "" || a.ResourceVersion == "" {
		t.Errorf("lease %+v, %v", a, err)
	}
	if d, err := get("dead"); err != nil || !d.Spec.RenewTime.Time.Equal(died) {
		t.Errorf("lease of a dead node %+v, %v", d, err)
	}
	for _, name := range []string{"left", "never"} {
		if _, err := get(name); !apierrors.IsNotFound(err) {
			t.Errorf("lease of %s: %v", name, err)
		}
	}
	// Writes are refused in one way.
	own.Namespace, own.Name = "kube-node-lease", "a"
	_, created := env.Create(in("kube-node-lease"), s, own.DeepCopy())
	_, updated := env.Update(in("kube-node-lease"), s, own.DeepCopy())
	_, collection := s.(rest.CollectionDeleter).DeleteCollection(in("kube-node-lease"), rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}, nil)
	for what, err := range map[string]error{"create": created, "update": updated, "delete": env.Delete(in("kube-node-lease"), s, "a"), "delete all": collection} {
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "answered from gossip and cannot be written") {
			t.Errorf("%s: %v", what, err)
		}
	}
	columns, cells := registrytest.Cells(t, s, a)
	if strings.Join(columns, "|") != "Name|Holder|Age" || cells[1] != "a" {
		t.Errorf("row %v", cells)
	}
}

func TestWatchOfNodeLeases(t *testing.T) {
	g := &fakeGossip{poked: make(chan struct{}, 9), members: []nodehealth.Member{{Name: "a"}, {Name: "b"}}}
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{Gossip: g})
	if err != nil {
		t.Fatal(err)
	}
	s := m["leases"]
	in := func(ns string) context.Context {
		return registrytest.Context(ns, coordinationv1.SchemeGroupVersion.WithResource("leases"))
	}
	begin := func(ns string, o *internalversion.ListOptions) watch.Interface {
		w, err := s.(rest.Watcher).Watch(in(ns), o)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	next := func(w watch.Interface, want string) {
		t.Helper()
		select {
		case ev := <-w.ResultChan():
			l, ok := ev.Object.(*coordinationv1.Lease)
			if got := fmt.Sprintf("%s %s/%s", ev.Type, l.GetNamespace(), l.GetName()); !ok || got != want || l.ResourceVersion == "" {
				t.Errorf("event %s, want %s; version %q", got, want, l.ResourceVersion)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event, want %s", want)
		}
	}
	w := begin("", &internalversion.ListOptions{})
	defer w.Stop()
	next(w, "ADDED kube-node-lease/a")
	next(w, "ADDED kube-node-lease/b")
	if _, err := env.Create(in("default"), s, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "mine", Namespace: "default"}}); err != nil {
		t.Fatal(err)
	}
	next(w, "ADDED default/mine")
	g.set(nodehealth.Member{Name: "a"}, nodehealth.Member{Name: "b", State: nodehealth.Dead, Since: time.Now()})
	next(w, "MODIFIED kube-node-lease/b")
	g.set(nodehealth.Member{Name: "a"}, nodehealth.Member{Name: "b", State: nodehealth.Left}, nodehealth.Member{Name: "c"})
	next(w, "ADDED kube-node-lease/c")
	next(w, "DELETED kube-node-lease/b")

	// Who has listed before hears of what there is as changed.
	obj, err := s.(rest.Lister).List(in("kube-node-lease"), nil)
	if err != nil {
		t.Fatal(err)
	}
	one := begin("kube-node-lease", &internalversion.ListOptions{ResourceVersion: obj.(*coordinationv1.LeaseList).ResourceVersion, FieldSelector: fields.OneTermEqualSelector("metadata.name", "a")})
	next(one, "MODIFIED kube-node-lease/a")
	one.Stop()
	if _, open := <-one.ResultChan(); open {
		t.Error("a stopped watch goes on")
	}
	def := begin("default", &internalversion.ListOptions{ResourceVersion: "0"})
	defer def.Stop()
	next(def, "ADDED default/mine")
}
