package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

func aPod(name, uid, node string, phase corev1.PodPhase, ready corev1.ConditionStatus, labels ...string) *corev1.Pod {
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid), Labels: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: phase, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: ready == corev1.ConditionTrue}}}}
	for _, l := range labels {
		p.Labels[l] = "set"
	}
	return p
}

func aSlice(service, manager string, pods ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: manager}}}
	for _, uid := range pods {
		if manager == "" { // servers are no pods
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{uid}})
			continue
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0." + uid}, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(uid)}})
	}
	return s
}

const controller = "endpointslice-controller.k8s.io"

// state is a store with objects and plain values.
func state(t *testing.T, objects map[string]any) *store.Store {
	t.Helper()
	s := store.New(store.Config{})
	s.Update(func(tx *store.Txn) {
		for key, o := range objects {
			value, plain := o.(string)
			if !plain {
				kv, err := encode(&store.KeyValue{Key: key}, o.(runtime.Object))
				if err != nil {
					t.Fatal(err)
				}
				value = string(kv.Value)
			}
			if _, err := tx.Put(key, []byte(value), 0, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	return s
}

// file is a snapshot that can be read twice.
type file struct {
	*bytes.Reader
}

func (f file) Rewind() error { _, err := f.Seek(0, io.SeekStart); return err }

func snapshot(t *testing.T, s *store.Store, id string) file {
	t.Helper()
	var b bytes.Buffer
	w, err := fsm.NewWriter(&b, fsm.Header{ClusterID: id, Revision: s.Revision(), Index: 1, Term: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.View().Ascend("", "", func(kv *store.KeyValue) bool { err = errors.Join(err, w.Add(kv)); return true })
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return file{bytes.NewReader(b.Bytes())}
}

// upper stands for sealing.
type upper struct{}

func (upper) Value(_ context.Context, _ string, v []byte) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(v, []byte("sealed:")); ok {
		return append([]byte("anew:"), rest...), nil
	}
	return v, nil
}

func contents(t *testing.T, b []byte) map[string]*store.KeyValue {
	t.Helper()
	r, err := fsm.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*store.KeyValue{}
	if err := each(t.Context(), r, func(kv *store.KeyValue) error { out[kv.Key] = kv; return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func names(pods []Pod) string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

func TestPrepare(t *testing.T) {
	const ready, not = corev1.ConditionTrue, corev1.ConditionFalse
	before := state(t, map[string]any{
		"/registry/pods/default/stays":                      aPod("stays", "1", "n1", corev1.PodPending, not),
		"/registry/pods/default/bound-since":                aPod("bound-since", "2", "", corev1.PodPending, not),
		"/registry/pods/default/relabelled":                 aPod("relabelled", "3", "n1", corev1.PodRunning, ready, "old"),
		"/registry/pods/default/deleted":                    aPod("deleted", "4", "n1", corev1.PodRunning, ready),
		"/registry/pods/default/replaced":                   aPod("replaced", "5", "n1", corev1.PodRunning, ready),
		"/registry/pods/default/ended":                      aPod("ended", "6", "n1", corev1.PodRunning, ready),
		"/registry/pods/default/job":                        aPod("job", "7", "n1", corev1.PodSucceeded, not),
		"/registry/services/default/web":                    "service",
		"/registry/services/default/back":                   "service",
		"/registry/services/default/hand":                   "service",
		"/registry/services/default/kubernetes":             "service",
		"/registry/endpointslices/default/web-1":            aSlice("web", controller, "1", "4"),
		"/registry/endpointslices/default/web-0":            aSlice("web", controller, "4"),
		"/registry/endpointslices/default/back-1":           aSlice("back", controller, "4"),
		"/registry/endpointslices/default/hand-1":           aSlice("hand", "me", "9"),
		"/registry/endpointslices/default/kubernetes":       aSlice("kubernetes", ""),
		"/registry/nodes/n1":                                "node of before",
		"/registry/nodes/gone":                              "node",
		"/registry/secrets/default/s":                       "sealed:secret",
		"/registry/configmaps/default/c":                    "before",
		"/skiff/keys/000001":                                "key of before",
		"/skiff/members/x":                                  "member of before",
		"/skiff/reserved/clusterip/1":                       "owner",
		"/registry/apps/deployments/default/name-that-ends": "x",
	})
	now := state(t, map[string]any{
		"/registry/pods/default/stays":                aPod("stays", "1", "n1", corev1.PodRunning, ready),
		"/registry/pods/default/bound-since":          aPod("bound-since", "2", "n2", corev1.PodRunning, ready),
		"/registry/pods/default/relabelled":           aPod("relabelled", "3", "n1", corev1.PodRunning, not),
		"/registry/pods/default/replaced":             aPod("replaced", "55", "n2", corev1.PodRunning, ready),
		"/registry/pods/default/ended":                aPod("ended", "6", "n1", corev1.PodFailed, not),
		"/registry/pods/default/new":                  aPod("new", "8", "n1", corev1.PodRunning, ready),
		"/registry/pods/default/new-and-ended":        aPod("new-and-ended", "81", "n1", corev1.PodSucceeded, not),
		"/registry/pods/default/waiting":              aPod("waiting", "82", "", corev1.PodPending, not),
		"/registry/services/default/web":              "service",
		"/registry/services/default/newer":            "service",
		"/registry/endpointslices/default/web-1":      aSlice("web", controller, "1", "8", "55"),
		"/registry/endpointslices/default/web-2":      aSlice("web", controller, "2"),
		"/registry/endpointslices/default/newer-1":    aSlice("newer", controller, "1"),
		"/registry/endpointslices/default/hand-1":     aSlice("hand", "me", "1"),
		"/registry/endpointslices/default/kubernetes": aSlice("kubernetes", "", "now"),
		"/registry/nodes/n1":                          "node of now",
		"/skiff/keys/000002":                          "key of now",
		"/skiff/reserved/clusterip/2":                 "owner",
	}).View()

	var own map[string][]byte
	var out bytes.Buffer
	pods, err := Prepare(t.Context(), snapshot(t, before, "c"), &out, Config{Now: now, ClusterID: "c", Sealed: func(o map[string][]byte) (Values, error) {
		own = o
		return upper{}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(own) != 3 || string(own["/skiff/keys/000001"]) != "key of before" {
		t.Errorf("own keys: %v", own)
	}
	if got, want := fmt.Sprint(names(pods.Stay), "|", names(pods.Stop), "|", names(pods.Start), "|", names(pods.Ended)),
		"bound-since relabelled stays|new replaced|deleted replaced|ended"; got != want {
		t.Errorf("pods %s, want %s", got, want)
	}
	got := contents(t, out.Bytes())
	same := func(key string) bool {
		kv, ok := now.Get(key)
		return ok && got[key] != nil && bytes.Equal(kv.Value, got[key].Value)
	}
	for _, key := range []string{"/registry/pods/default/stays", "/registry/pods/default/ended", "/registry/endpointslices/default/web-2", "/registry/endpointslices/default/kubernetes"} {
		if !same(key) {
			t.Errorf("%s is not as it is now", key)
		}
	}
	for key, want := range map[string]string{"/registry/secrets/default/s": "anew:secret", "/registry/configmaps/default/c": "before", "/skiff/reserved/clusterip/1": "owner"} {
		if got[key] == nil || string(got[key].Value) != want {
			t.Errorf("%s holds %v, want %s", key, got[key], want)
		}
	}
	for _, key := range []string{"/registry/nodes/n1", "/registry/nodes/gone", "/skiff/keys/000001", "/skiff/members/x", "/registry/endpointslices/default/web-0",
		"/registry/endpointslices/default/back-1", "/registry/endpointslices/default/newer-1", "/registry/services/default/newer", "/registry/pods/default/new", "/registry/pods/default/waiting"} {
		if got[key] != nil {
			t.Errorf("%s is in it", key)
		}
	}
	if kv, _ := before.View().Get("/registry/endpointslices/default/hand-1"); !bytes.Equal(got["/registry/endpointslices/default/hand-1"].Value, kv.Value) {
		t.Error("a slice made by hand is not the snapshot's")
	}
	pod := func(name string) *corev1.Pod {
		p, err := decode[corev1.Pod](got["/registry/pods/default/"+name])
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := pod("bound-since"); p.Spec.NodeName != "n2" || p.Status.Phase != corev1.PodRunning {
		t.Errorf("bound since: %+v", p)
	}
	if p := pod("relabelled"); p.Labels["old"] != "set" || p.Status.Conditions[0].Status != not {
		t.Errorf("relabelled: %+v", p)
	}
	for _, name := range []string{"deleted", "replaced"} {
		if p := pod(name); p.Status.Conditions[0].Status != not || p.Status.Conditions[1].Status != ready || p.Status.ContainerStatuses[0].Ready || p.Status.Phase != corev1.PodRunning {
			t.Errorf("%s comes back as %+v", name, p.Status)
		}
	}
	if p := pod("replaced"); p.UID != "5" {
		t.Errorf("replaced: %+v", p)
	}
	s, err := decode[discoveryv1.EndpointSlice](got["/registry/endpointslices/default/web-1"])
	if err != nil || len(s.Endpoints) != 1 || s.Endpoints[0].TargetRef.UID != "1" {
		t.Errorf("endpoints %+v, %v", s, err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	s := state(t, map[string]any{"/registry/pods/default/a": aPod("a", "1", "n", corev1.PodRunning, corev1.ConditionTrue)})
	broken := state(t, map[string]any{"/registry/pods/default/a": "no pod"})
	wrong := errors.New("wrong key")
	fine := func(map[string][]byte) (Values, error) { return upper{}, nil }
	for name, c := range map[string]struct {
		of     *store.Store
		id     string
		sealed func(map[string][]byte) (Values, error)
		want   string
	}{
		"of another cluster":      {s, "other", fine, ErrForeign.Error()},
		"whose keys do not open":  {s, "c", func(map[string][]byte) (Values, error) { return nil, wrong }, "wrong key"},
		"with what can't be read": {broken, "c", fine, "object /registry/pods/default/a"},
	} {
		_, err := Prepare(t.Context(), snapshot(t, c.of, c.id), io.Discard, Config{Now: s.View(), ClusterID: "c", Sealed: c.sealed})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a snapshot %s: %v", name, err)
		}
	}
}
