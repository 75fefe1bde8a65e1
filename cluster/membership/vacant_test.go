package membership

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
)

func boundPod(name, node, owner string, tolerated *int64) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Generation: 1}, Spec: corev1.PodSpec{NodeName: node}}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: owner, Name: "o", UID: "o", Controller: ptr.To(true)}}
	}
	p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: tolerated}}
	return p
}

// A name is not given to another host while the former one may still run pods that
// must not run twice.
func TestNameOfAHostThatMayStillRunPods(t *testing.T) {
	t.Parallel()
	node := func(ready corev1.ConditionStatus, taints ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w"}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		for _, k := range taints {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
		}
		return n
	}
	minute := ptr.To(int64(60))
	set := boundPod("db-0", "w", "StatefulSet", minute)
	deleted := boundPod("db-0", "w", "StatefulSet", minute)
	deleted.DeletionTimestamp, deleted.Finalizers, deleted.Generation = ptr.To(metav1.Now()), []string{"x/y"}, 2
	changed := boundPod("db-0", "w", "StatefulSet", minute)
	changed.Generation = 2
	finished := boundPod("db-0", "w", "StatefulSet", minute)
	finished.Status.Phase = corev1.PodFailed
	lost := node(corev1.ConditionUnknown)
	waits := nodehealth.End{Wait: 61200 * time.Millisecond}
	const hint = "kubectl taint node w node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
	for _, tc := range []struct {
		name  string
		objs  []runtime.Object
		end   nodehealth.End
		down  error
		want  []string // of the refusal; empty: admitted
		asked time.Duration
	}{
		{name: "no pods", objs: []runtime.Object{lost}},
		{name: "lease not over", objs: []runtime.Object{lost, set}, end: waits, asked: time.Minute,
			want: []string{"may still run default/db-0, which must not run twice", "try again in 1m2s", hint}},
		{name: "lease not over, pod deleted", objs: []runtime.Object{lost, deleted}, end: waits, asked: time.Minute, want: []string{"try again in 1m2s"}},
		{name: "the longest counts", objs: []runtime.Object{lost, boundPod("db-1", "w", "StatefulSet", ptr.To(int64(300))), set}, end: waits, asked: 5 * time.Minute,
			want: []string{"may still run default/db-0, default/db-1,"}},
		{name: "many", objs: []runtime.Object{lost, set, boundPod("db-1", "w", "StatefulSet", minute), boundPod("db-2", "w", "StatefulSet", minute), boundPod("db-3", "w", "StatefulSet", minute)},
			end: waits, asked: time.Minute, want: []string{"default/db-0, default/db-1, default/db-2 and 1 more, which"}},
		{name: "lease over", objs: []runtime.Object{lost, set}, end: nodehealth.End{Over: true}, asked: time.Minute},
		{name: "frozen", objs: []runtime.Object{lost, set}, end: nodehealth.End{Frozen: true}, asked: time.Minute, want: []string{"when evictions are no longer frozen", hint}},
		{name: "no leader", objs: []runtime.Object{lost, set}, down: nodehealth.ErrNotLeading, asked: time.Minute, want: []string{"try again in a few seconds", "does not lead"}},
		{name: "tolerates it for ever", objs: []runtime.Object{lost, boundPod("db-0", "w", "StatefulSet", nil)}, want: []string{"when default/db-0 was removed by hand", hint}},
		{name: "tolerations may have changed", objs: []runtime.Object{lost, changed}, want: []string{"when default/db-0 was removed by hand"}},
		{name: "out of service", objs: []runtime.Object{node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService), set}, end: waits},
		{name: "out of service, but works", objs: []runtime.Object{node(corev1.ConditionTrue, corev1.TaintNodeOutOfService), set}, end: waits, asked: time.Minute, want: []string{"try again in 1m2s"}},
		{name: "node deleted", objs: []runtime.Object{set}, end: waits, asked: time.Minute, want: []string{"try again in a minute, when they are removed"}},
		{name: "pods that may run twice", objs: []runtime.Object{lost, boundPod("web-x", "w", "ReplicaSet", minute), boundPod("bare", "w", "", minute), boundPod("log-x", "w", "DaemonSet", nil)}, end: waits},
		{name: "finished", objs: []runtime.Object{lost, finished}, end: waits},
		{name: "on another node", objs: []runtime.Object{lost, boundPod("db-0", "v", "StatefulSet", minute)}, end: waits},
	} {
		for former, role := range map[string]Role{"agent": RoleAgent, "server": RoleServer, "": ""} {
			t.Run(fmt.Sprintf("%s, former %q", tc.name, former), func(t *testing.T) {
				t.Parallel()
				b := newBench(t)
				if role != "" {
					op, err := putRecord("w", Record{ID: "id-old", Role: role}, 0)
					if err != nil {
						t.Fatal(err)
					}
					if err := b.propose(context.Background(), "test", op); err != nil {
						t.Fatal(err)
					}
					b.setPeers(peer("a", "id-a", "10.0.0.1", RoleServer, Alive), peer("w", "id-old", "10.0.0.5", role, Dead))
				}
				if role.Votes() {
					b.raft.members = append(b.raft.members, RaftMember{ID: "id-old", Address: "10.0.0.5:6444", Voter: true})
				}
				b.kube = fake.NewClientset(tc.objs...)
				asked := time.Duration(0)
				b.raft.methods[nodehealth.EndMethod] = func(_ context.Context, _ string, body []byte) ([]byte, error) {
					var r struct {
						Node      string
						Tolerated time.Duration
					}
					if err := json.Unmarshal(body, &r); err != nil || r.Node != "w" {
						t.Errorf("question %s: %v", body, err)
					}
					asked = r.Tolerated
					if tc.down != nil {
						return nil, tc.down
					}
					return json.Marshal(tc.end)
				}
				_, err := b.join(b.token(t, RoleAgent), agentRequest(t, "w", "id-w"))
				if asked != tc.asked {
					t.Errorf("asked for %v, want %v", asked, tc.asked)
				}
				rec, _, _ := b.record("w")
				if len(tc.want) == 0 {
					if err != nil || rec == nil || rec.ID != "id-w" {
						t.Errorf("not admitted: %v, %+v", err, rec)
					}
					return
				}
				for _, want := range tc.want {
					if tc.down == nil {
						refusedWith(t, err, want)
					} else if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%v, want %q", err, want)
					}
				}
				if rec != nil && rec.ID != "id-old" {
					t.Errorf("it has the name all the same: %+v", rec)
				}
				if b.removal("id-old") != nil || role.Votes() && len(b.raft.Members()) != 2 {
					t.Error("the former host was removed all the same")
				}
			})
		}
	}
}

// A host that asks again, because the answer was lost, has the name already.
func TestNameIsNotAskedForTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
	b.kube = fake.NewClientset(boundPod("db-0", "w", "StatefulSet", nil))
	b.mustJoin(t, agentRequest(t, "w", "id-w"))
}
