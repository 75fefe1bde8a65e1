package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// encoded is how the API library stores an object.
func encoded(t testing.TB, obj runtime.Object, apiVersion, kind string) string {
	t.Helper()
	obj.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(apiVersion, kind))
	var b bytes.Buffer
	if err := serializer().Encode(obj, &b); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), protobufMagic) {
		t.Fatalf("encoded as %q", b.String()[:10])
	}
	return b.String()
}

// state is a plain snapshot of these keys.
func state(t testing.TB, keys map[string]string) []byte {
	t.Helper()
	f := fsm.New(store.New(store.Config{}))
	cmds := []fsm.Command{{Configuration: &fsm.Configuration{ClusterID: "test-cluster"}}}
	for k, v := range keys {
		cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: k, Value: []byte(v)}))
	}
	entry, err := fsm.EncodeEntry(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 9, Term: 2, Data: entry})
	var b bytes.Buffer
	if err := f.Capture().Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pod(t testing.TB, name, uid, image string, phase corev1.PodPhase) string {
	return encoded(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(uid), Labels: map[string]string{"app.kubernetes.io/name": image}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "side", Image: "busybox"}, {Name: "web", Image: image}}},
		Status:     corev1.PodStatus{Phase: phase},
	}, "v1", "Pod")
}

func widget(size int, extra string) string {
	return fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","namespace":"default","uid":"u-w"%s},"spec":{"size":%d}}`, extra, size)
}

// rot is a seal that any key with the right word opens.
func rot(word string) OpenSealed {
	return func(own map[string][]byte) (OpenValue, error) {
		if string(own["/skiff/keys/000001"]) != word {
			return nil, errors.New("wrong cluster key")
		}
		return func(key string, value []byte) ([]byte, error) {
			body := strings.TrimPrefix(string(value), SealedMagic+"1:")
			_, plain, ok := strings.Cut(body, "|") // what is before differs each time
			if !ok {
				return nil, errors.New(key + " was changed")
			}
			return []byte(plain), nil
		}, nil
	}
}

func sealedSecret(t testing.TB, nonce, name, value string) string {
	return SealedMagic + "1:" + nonce + "|" + encoded(t, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "u-s"}, Data: map[string][]byte{"password": []byte(value)},
	}, "v1", "Secret")
}

func diffStates(t testing.TB) (a, b []byte) {
	t.Helper()
	a = state(t, map[string]string{
		"/registry/pods/default/gone":              pod(t, "gone", "u1", "nginx:1", corev1.PodRunning),
		"/registry/pods/default/stays":             pod(t, "stays", "u2", "nginx:1", corev1.PodRunning),
		"/registry/pods/default/moved":             pod(t, "moved", "u3", "nginx:1", corev1.PodPending),
		"/registry/pods/default/other":             pod(t, "other", "u4", "nginx:1", corev1.PodRunning),
		"/registry/example.com/widgets/default/w":  widget(1, ""),
		"/registry/secrets/default/resealed":       sealedSecret(t, "x", "resealed", "same"),
		"/registry/secrets/default/rewritten":      sealedSecret(t, "x", "rewritten", "old"),
		"/registry/nonsense/default/n":             "no object",
		"/registry/namespaces/default":             encoded(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, "v1", "Namespace"),
		"/skiff/keys/000001":                       "word",
		"/skiff/trust":                             "one",
		"/skiff/gone":                              "x",
		"/registry/example.com/gadgets/no-ns-here": `{"apiVersion":"example.com/v1","kind":"Gadget","metadata":{"name":"no-ns-here"}}`,
	})
	b = state(t, map[string]string{
		"/registry/pods/default/new":              pod(t, "new", "u5", "nginx:1", corev1.PodRunning),
		"/registry/pods/default/stays":            pod(t, "stays", "u2", "nginx:1", corev1.PodRunning),
		"/registry/pods/default/moved":            pod(t, "moved", "u3", "nginx:2", corev1.PodRunning),
		"/registry/pods/default/other":            pod(t, "other", "u6", "nginx:1", corev1.PodRunning),
		"/registry/example.com/widgets/default/w": widget(2, `,"managedFields":[{"manager":"x"}]`),
		"/registry/secrets/default/resealed":      sealedSecret(t, "y", "resealed", "same"),
		"/registry/secrets/default/rewritten":     sealedSecret(t, "y", "rewritten", "new"),
		"/registry/nonsense/default/n":            "no object either",
		"/registry/namespaces/default":            encoded(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, "v1", "Namespace"),
		"/skiff/keys/000001":                      "word",
		"/skiff/trust":                            "two",
		"/skiff/epoch":                            `{"number":2,"id":"x"}`,
	})
	return a, b
}

func TestDiff(t *testing.T) {
	a, b := diffStates(t)
	diff := func(o DiffOptions) (*Difference, string) {
		t.Helper()
		d, err := Diff(t.Context(), bytes.NewReader(a), bytes.NewReader(b), o)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for sign, list := range map[string][]Change{"1+": d.Added, "2~": d.Changed, "3-": d.Removed} {
			var s []string
			for _, c := range list {
				line := fmt.Sprintf("%s %s %s/%s", sign[1:], c.Kind, c.Namespace, c.Name)
				if c.Replaced() {
					line += " replaced"
				}
				if c.Sealed {
					line += " sealed"
				}
				s = append(s, strings.TrimSpace(line+" "+strings.Join(c.Fields, ",")))
			}
			lines = append(lines, sign+"\n"+strings.Join(s, "\n"))
		}
		return d, strings.Join(slices.Sorted(slices.Values(lines)), "\n")
	}
	d, got := diff(DiffOptions{Details: true, OpenA: rot("word"), OpenB: rot("word")})
	want := `1+
+ Pod default/new
2~
~  default/n
~ Pod default/moved metadata.labels[app.kubernetes.io/name],spec.containers[web].image,status.phase
~ Pod default/other replaced metadata.uid
~ Secret default/rewritten data.password
~ Widget default/w metadata.managedFields,spec.size
3-
- Gadget /no-ns-here
- Pod default/gone`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if fmt.Sprint(d.Own) != "map[/skiff/epoch:added /skiff/gone:removed /skiff/trust:changed]" || d.Same != 3 {
		t.Errorf("own %v, same %d", d.Own, d.Same)
	}
	if d.A.Epoch != 1 || d.B.Epoch != 2 || d.A.ClusterID != "test-cluster" || d.A.TotalKeys != 13 {
		t.Errorf("A %+v, B %+v", d.A, d.B)
	}
	if c := d.Removed[1]; c.UIDA != "u1" || c.UIDB != "" || c.RevisionA == 0 || c.RevisionB != 0 || c.Resource != "pods" || c.APIVersion != "v1" {
		t.Errorf("removed %+v", c)
	}

	_, got = diff(DiffOptions{OpenA: rot("word")})
	for _, line := range []string{"~ Secret default/resealed sealed", "~ Secret default/rewritten sealed", "~ Pod default/other\n", "~ Widget default/w\n"} {
		if !strings.Contains(got+"\n", line) {
			t.Errorf("without key and details: no %q in\n%s", line, got)
		}
	}
	// In the other direction, and with itself.
	a, b = b, a
	if d, _ = diff(DiffOptions{}); len(d.Added) != 2 || len(d.Removed) != 1 {
		t.Errorf("back: %d added, %d removed", len(d.Added), len(d.Removed))
	}
	a = b
	if d, _ = diff(DiffOptions{Details: true}); len(d.Added)+len(d.Changed)+len(d.Removed)+len(d.Own) != 0 || d.Same != 10 {
		t.Errorf("with itself: %+v", d)
	}
}

func TestDiffRefuses(t *testing.T) {
	a, b := diffStates(t)
	flipped := bytes.Clone(b)
	flipped[len(flipped)-3] ^= 1
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		a, b []byte
		o    DiffOptions
		want string
	}{
		"cut":       {t.Context(), a[:len(a)-1], b, DiffOptions{}, "A: snapshot is truncated"},
		"foreign":   {t.Context(), a, []byte("text"), DiffOptions{}, "B: not a skiff snapshot"},
		"damaged":   {t.Context(), a, flipped, DiffOptions{}, "B: snapshot is damaged"},
		"wrong key": {t.Context(), a, b, DiffOptions{OpenA: rot("word"), OpenB: rot("other")}, "B: wrong cluster key"},
		"cancelled": {cancelled, a, b, DiffOptions{}, "canceled"},
	} {
		d, err := Diff(c.ctx, bytes.NewReader(c.a), io.Reader(bytes.NewReader(c.b)), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || d != nil {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}
