package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

// newNamespace makes a namespace that the test alone uses.
func (s *testServer) newNamespace(t testing.TB) string {
	t.Helper()
	ns, err := s.client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func TestListInChunks(t *testing.T) {
	s := newServer(t)
	ns := s.newNamespace(t)
	maps := s.client.CoreV1().ConfigMaps(ns)
	for i := range 25 {
		if _, err := maps.Create(t.Context(), configMap(fmt.Sprintf("c%02d", i), nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	o := metav1.ListOptions{Limit: 10}
	rv := ""
	for page := 0; ; page++ {
		l, err := maps.List(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if page == 0 {
			rv = l.ResourceVersion
			if l.RemainingItemCount == nil || *l.RemainingItemCount < 15 {
				t.Errorf("remainingItemCount is %v", l.RemainingItemCount)
			}
		} else if l.ResourceVersion != rv {
			t.Errorf("page %d is of revision %s, the first of %s", page, l.ResourceVersion, rv)
		}
		for _, m := range l.Items {
			if strings.HasPrefix(m.Name, "c") {
				names = append(names, m.Name)
			}
		}
		// What is written between the pages is not seen.
		if _, err := maps.Create(t.Context(), configMap(fmt.Sprintf("c%02d-later", page), nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if l.Continue == "" {
			break
		}
		o.Continue = l.Continue
	}
	if len(names) != 25 {
		t.Errorf("pages have %d objects, want the 25 of the first moment: %v", len(names), names)
	}
}

func TestResourceVersions(t *testing.T) {
	s := newServer(t)
	maps := s.client.CoreV1().ConfigMaps(s.newNamespace(t))
	first, err := maps.Create(t.Context(), configMap("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(t.Context(), configMap("b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	count := func(o metav1.ListOptions) (n int, err error) {
		l, err := maps.List(t.Context(), o)
		if err != nil {
			return 0, err
		}
		for _, m := range l.Items {
			if len(m.Name) == 1 {
				n++
			}
		}
		return n, nil
	}
	for _, c := range []struct {
		name string
		o    metav1.ListOptions
		want int
	}{
		{"any", metav1.ListOptions{ResourceVersion: "0"}, 2},
		{"newest", metav1.ListOptions{}, 2},
		{"not older", metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}, 2},
		{"exact", metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}, 1},
	} {
		if n, err := count(c.o); err != nil || n != c.want {
			t.Errorf("%s: %d objects, want %d (%v)", c.name, n, c.want, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	raw := s.client.CoreV1().RESTClient().Get().MaxRetries(0).AbsPath("/api/v1/configmaps").Param("resourceVersion", "999999999")
	if err := raw.Do(ctx).Error(); !apierrors.IsTimeout(err) || !strings.Contains(err.Error(), "Too large resource version") {
		t.Errorf("a revision from the future: %v", err)
	}
}

func TestWatchBookmarksAndInitialEvents(t *testing.T) {
	s := newServer(t)
	maps := s.client.CoreV1().ConfigMaps(s.newNamespace(t))
	for _, name := range []string{"a", "b"} {
		if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"in": "yes"}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := maps.Watch(t.Context(), metav1.ListOptions{LabelSelector: "in=yes", SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	next := func(want watch.EventType) *corev1.ConfigMap {
		t.Helper()
		select {
		case e := <-w.ResultChan():
			m, ok := e.Object.(*corev1.ConfigMap)
			if e.Type != want || !ok {
				t.Fatalf("got %s %v, want %s", e.Type, e.Object, want)
			}
			return m
		case <-time.After(time.Minute):
			t.Fatalf("no %s within a minute", want)
		}
		return nil
	}
	if got := next(watch.Added).Name + next(watch.Added).Name; got != "ab" {
		t.Errorf("initial objects are %s", got)
	}
	if end := next(watch.Bookmark); end.Annotations[metav1.InitialEventsAnnotationKey] != "true" || end.ResourceVersion == "" {
		t.Errorf("the end of the initial objects is not marked: %v", end.ObjectMeta)
	}
	// Entering, changing in and leaving the selection.
	if _, err := maps.Create(t.Context(), configMap("c", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	patch := func(name, p string) {
		t.Helper()
		if _, err := maps.Patch(t.Context(), name, types.MergePatchType, []byte(p), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch("c", `{"metadata":{"labels":{"in":"yes"}}}`)
	if m := next(watch.Added); m.Name != "c" {
		t.Errorf("%s entered", m.Name)
	}
	patch("c", `{"data":{"k":"v"}}`)
	if m := next(watch.Modified); m.Data["k"] != "v" {
		t.Errorf("modified to %v", m.Data)
	}
	patch("c", `{"metadata":{"labels":{"in":"no"}}}`)
	left := next(watch.Deleted)
	now, err := maps.Get(t.Context(), "c", metav1.GetOptions{})
	if err != nil || left.ResourceVersion != now.ResourceVersion || left.Labels["in"] != "yes" {
		t.Errorf("left as %s %v, is %s (%v)", left.ResourceVersion, left.Labels, now.ResourceVersion, err)
	}
}

func TestWatchTooOldIsGone(t *testing.T) {
	s := newServer(t)
	w, err := s.client.CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1", AllowWatchBookmarks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Type != watch.Added { // the whole history is still there
		t.Errorf("first event is %s %v", e.Type, e.Object)
	}
}

func TestPatches(t *testing.T) {
	s := newServer(t)
	ns := s.newNamespace(t)
	deployments := s.client.AppsV1().Deployments(ns)
	d := webDeployment("web", 1)
	if _, err := deployments.Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind  types.PatchType
		patch string
		check func(*appsv1.Deployment) bool
	}{
		{types.JSONPatchType, `[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":2}]`,
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 2 }},
		{types.MergePatchType, `{"spec":{"replicas":3},"metadata":{"annotations":{"a":"b"}}}`,
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 3 && d.Annotations["a"] == "b" }},
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s:1"}]}}}}`,
			func(d *appsv1.Deployment) bool { return len(d.Spec.Template.Spec.Containers) == 2 }},
		{types.ApplyPatchType, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"by":"apply"}}}`,
			func(d *appsv1.Deployment) bool { return d.Labels["by"] == "apply" && *d.Spec.Replicas == 3 }},
	} {
		o := metav1.PatchOptions{}
		if c.kind == types.ApplyPatchType {
			o.FieldManager = "tester"
		}
		got, err := deployments.Patch(t.Context(), "web", c.kind, []byte(c.patch), o)
		if err != nil || !c.check(got) {
			t.Errorf("%s: %v\n%+v", c.kind, err, got)
		}
	}
	if _, err := deployments.Patch(t.Context(), "web", types.JSONPatchType, []byte(`[{"op":"test","path":"/spec/replicas","value":7}]`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a failing test operation: %v", err)
	}
	if _, err := deployments.Patch(t.Context(), "none", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("patch of nothing: %v", err)
	}
}

func webDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i:1"}}}},
	}}
}

func TestServerSideApplyConflicts(t *testing.T) {
	s := newServer(t)
	maps := s.client.CoreV1().ConfigMaps(s.newNamespace(t))
	apply := func(manager, value string, force bool) error {
		p := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"},"data":{"k":%q}}`, value)
		_, err := maps.Patch(t.Context(), "m", types.ApplyPatchType, []byte(p), metav1.PatchOptions{FieldManager: manager, Force: &force})
		return err
	}
	if err := apply("one", "1", false); err != nil {
		t.Fatal(err)
	}
	err := apply("two", "2", false)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one"`) || !strings.Contains(err.Error(), ".data.k") {
		t.Errorf("conflict is told as: %v", err)
	}
	if err := apply("two", "2", true); err != nil {
		t.Fatal(err)
	}
	m, err := maps.Get(t.Context(), "m", metav1.GetOptions{})
	if err != nil || m.Data["k"] != "2" {
		t.Errorf("after force: %v %v", m.Data, err)
	}
	for _, f := range m.ManagedFields {
		if f.Manager == "one" && strings.Contains(string(f.FieldsV1.GetRawBytes()), "f:k") {
			t.Error("the field still belongs to the first manager")
		}
	}
	// Nothing changes: nothing is written.
	before := m.ResourceVersion
	if err := apply("two", "2", false); err != nil {
		t.Fatal(err)
	}
	if m, err = maps.Get(t.Context(), "m", metav1.GetOptions{}); err != nil || m.ResourceVersion != before {
		t.Errorf("an apply without a change wrote: %s -> %s (%v)", before, m.ResourceVersion, err)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	s := newServer(t)
	maps := s.client.CoreV1().ConfigMaps(s.newNamespace(t))
	all := []string{metav1.DryRunAll}
	m, err := maps.Create(t.Context(), configMap("dry", nil), metav1.CreateOptions{DryRun: all})
	if err != nil || m.UID == "" {
		t.Fatalf("dry run: %v %v", m, err)
	}
	if _, err := maps.Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run created: %v", err)
	}
	if _, err := maps.Create(t.Context(), configMap("real", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), "real", metav1.DeleteOptions{DryRun: all}); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Get(t.Context(), "real", metav1.GetOptions{}); err != nil {
		t.Errorf("a dry run deleted: %v", err)
	}
}

// warnings gathers what the server warns of.
type warnings struct {
	mu   sync.Mutex
	text []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, text)
}

func TestFieldValidation(t *testing.T) {
	s := newServer(t)
	ns := s.newNamespace(t)
	seen := &warnings{}
	c := rest.CopyConfig(s.config)
	c.WarningHandler = seen
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	create := func(validation, body string) error {
		return client.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Param("fieldValidation", validation).
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
	}
	pod := func(name string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"containers":[{"name":"c","image":"i","resource":{}}]}}`
	}
	err = create("Strict", pod("strict"))
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "spec.containers[0].resource"`) {
		t.Errorf("strict: %v", err)
	}
	if err := create("Warn", pod("warn")); err != nil {
		t.Errorf("warn: %v", err)
	}
	if len(seen.text) == 0 || !strings.Contains(seen.text[0], `unknown field "spec.containers[0].resource"`) {
		t.Errorf("warnings are %q", seen.text)
	}
	seen.text = nil
	if err := create("Ignore", pod("ignore")); err != nil || len(seen.text) > 0 {
		t.Errorf("ignore: %v %q", err, seen.text)
	}
	if err := create("Strict", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":"none"}}`); !apierrors.IsBadRequest(err) {
		t.Errorf("wrong type: %v", err)
	}
	if err := create("Strict", `{"apiVersion":"v1"`); !apierrors.IsBadRequest(err) {
		t.Errorf("cut off: %v", err)
	}
}

func TestPreconditionsAndDeleteCollection(t *testing.T) {
	s := newServer(t)
	maps := s.client.CoreV1().ConfigMaps(s.newNamespace(t))
	var last *corev1.ConfigMap
	for i := range 12 {
		m := configMap("m"+strconv.Itoa(i), nil)
		m.Labels = map[string]string{"even": strconv.FormatBool(i%2 == 0)}
		var err error
		if last, err = maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	wrong := types.UID("wrong")
	for name, p := range map[string]*metav1.Preconditions{"uid": {UID: &wrong}, "resourceVersion": {ResourceVersion: ptr.To("1")}} {
		if err := maps.Delete(t.Context(), last.Name, metav1.DeleteOptions{Preconditions: p}); !apierrors.IsConflict(err) {
			t.Errorf("delete with a wrong %s: %v", name, err)
		}
	}
	stale := last.DeepCopy()
	last.Data = map[string]string{"a": "b"}
	if _, err := maps.Update(t.Context(), last, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Update(t.Context(), stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) ||
		!strings.Contains(err.Error(), "the object has been modified") {
		t.Errorf("update of a stale object: %v", err)
	}
	if err := maps.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "even=true"}); err != nil {
		t.Fatal(err)
	}
	l, err := maps.List(t.Context(), metav1.ListOptions{LabelSelector: "even"})
	if err != nil || len(l.Items) != 6 {
		t.Errorf("%d of 12 are left, want 6 (%v)", len(l.Items), err)
	}
}

func TestStatusAndScale(t *testing.T) {
	s := newServer(t)
	deployments := s.client.AppsV1().Deployments(s.newNamespace(t))
	d, err := deployments.Create(t.Context(), webDeployment("web", 0), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Status.Replicas = 9
	d.Labels = map[string]string{"x": "y"}
	eventually(t, "update", func() (bool, error) {
		now, err := deployments.Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		d.ResourceVersion = now.ResourceVersion
		got, err := deployments.Update(t.Context(), d, metav1.UpdateOptions{})
		return err == nil && got.Status.Replicas != 9 && got.Labels["x"] == "y", err
	})
	scale, err := deployments.GetScale(t.Context(), "web", metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 0 {
		t.Fatalf("scale: %v %v", scale, err)
	}
	scale = &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: scale.Namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: 4}}
	if _, err := deployments.UpdateScale(t.Context(), "web", scale, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if d, err = deployments.Get(t.Context(), "web", metav1.GetOptions{}); err != nil || *d.Spec.Replicas != 4 {
		t.Errorf("after scaling: %v %v", d.Spec.Replicas, err)
	}
}

func TestEventsExpire(t *testing.T) {
	s := newServer(t)
	ns := s.newNamespace(t)
	e, err := s.client.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: ns}, InvolvedObject: corev1.ObjectReference{Kind: "Namespace", Namespace: ns, Name: ns},
		Reason: "Test", Message: "test", Type: "Normal"}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kv, ok := s.state.View().Get("/registry/events/" + ns + "/" + e.Name)
	if !ok || kv.Expires < time.Now().Add(50*time.Minute).Unix() || kv.Expires > time.Now().Add(70*time.Minute).Unix() {
		t.Errorf("the event expires at %v", kv)
	}
}

func TestLoopbackAndOutsideSeeTheSame(t *testing.T) {
	s := newServer(t)
	inside, err := kubernetes.NewForConfig(s.LoopbackClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	a, err := inside.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.client.Discovery().ServerGroups()
	if err != nil || len(a.Groups) != len(b.Groups) {
		t.Errorf("%d groups inside, %d outside (%v)", len(a.Groups), len(b.Groups), err)
	}
	w, err := inside.CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := <-w.ResultChan(); e.Type != watch.Added {
		t.Errorf("first event is %v", e)
	}
	w.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	if w, err = inside.CoreV1().Secrets("").Watch(ctx, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	for range w.ResultChan() { // ends
	}
}

func TestHealthAndVersionPaths(t *testing.T) {
	s := newServer(t)
	anonymous := rest.AnonymousClientConfig(s.config)
	client, err := kubernetes.NewForConfig(anonymous)
	if err != nil {
		t.Fatal(err)
	}
	get := func(c kubernetes.Interface, path string) (int, []byte) {
		var code int
		body, _ := c.Discovery().RESTClient().Get().AbsPath(path).Do(t.Context()).StatusCode(&code).Raw()
		return code, body
	}
	for _, path := range []string{"/readyz", "/livez", "/healthz"} {
		if code, body := get(client, path); code != http.StatusOK || string(body) != "ok" {
			t.Errorf("%s without credentials: %d %s", path, code, body)
		}
	}
	if code, _ := get(client, "/metrics"); code != http.StatusForbidden {
		t.Errorf("/metrics without credentials: %d", code)
	}
	if code, body := get(s.client, "/metrics"); code != http.StatusOK || !strings.Contains(string(body), "apiserver_request_total") {
		t.Errorf("/metrics: %d, %d bytes", code, len(body))
	}
	code, body := get(s.client, "/version")
	var v struct{ Major, Minor string }
	if err := json.Unmarshal(body, &v); code != http.StatusOK || err != nil {
		t.Errorf("/version: %d %s", code, body)
	}
	if code, _ := get(s.client, "/no/such/path"); code != http.StatusNotFound {
		t.Errorf("unknown path: %d", code)
	}
}
