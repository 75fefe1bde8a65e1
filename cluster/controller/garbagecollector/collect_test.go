package garbagecollector

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func TestJudge(t *testing.T) {
	gone, waits := []types.UID{"gone"}, []types.UID{"waits"}
	for _, tc := range []struct {
		name string
		o    ownership
		owns bool
		want verdict
	}{
		{"no owners", ownership{}, true, keep},
		{"owner there", ownership{solid: 1}, false, keep},
		{"one of two gone", ownership{solid: 1, dangling: gone}, false, letGo},
		{"one of two waits", ownership{solid: 1, waiting: waits}, true, letGo},
		{"all gone", ownership{dangling: gone}, true, deletePlain},
		{"owner waits, owns nothing", ownership{waiting: waits}, false, deletePlain},
		{"owner waits, owns something", ownership{waiting: waits, dangling: gone}, true, deleteInFront},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := judge(tc.o, tc.owns); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestGraph(t *testing.T) {
	g := newGraph()
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	yes := true
	ref := func(uid types.UID, blocks bool) metav1.OwnerReference {
		r := metav1.OwnerReference{UID: uid}
		if blocks {
			r.BlockOwnerDeletion = &yes
		}
		return r
	}
	a, b := object{gvr: pods, name: "a", uid: "a"}, object{gvr: pods, name: "b", uid: "b"}
	if !g.set(a, []metav1.OwnerReference{ref("o", true), ref("p", false)}, false) || !g.set(b, []metav1.OwnerReference{ref("o", false)}, false) {
		t.Error("new objects do not count as moved")
	}
	if g.set(b, []metav1.OwnerReference{ref("o", false)}, false) {
		t.Error("the same again counts as moved")
	}
	if d, n := g.dependents("o"), g.blocking("o"); len(d) != 2 || len(n) != 1 || n[0] != a {
		t.Errorf("dependents %v, blocking %v", d, n)
	}
	if !g.set(a, []metav1.OwnerReference{ref("p", false)}, false) || len(g.blocking("o")) != 0 {
		t.Error("a reference that was dropped still blocks")
	}
	if g.set(b, []metav1.OwnerReference{ref("o", false)}, true) || !g.isHeld("b") {
		t.Error("held, with the same owners, must be recorded and not count as moved")
	}
	g.set(a, nil, false)
	g.dropKind(pods)
	if len(g.nodes)+len(g.owned) != 0 {
		t.Errorf("left over: %v %v", g.nodes, g.owned)
	}
}

func TestUIDSetForgetsTheOldest(t *testing.T) {
	s := newUIDSet(2)
	for _, uid := range []types.UID{"a", "b", "b", "c"} {
		s.add(uid)
	}
	if s.has("a") || !s.has("b") || !s.has("c") {
		t.Errorf("set %v", s.order)
	}
	s.drop("b")
	if got := s.take(); len(got) != 1 || got[0] != "c" || s.has("c") {
		t.Errorf("took %v", got)
	}
}
