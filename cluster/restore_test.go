package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
)

// saved is a snapshot of the server as it is now.
func (s *testServer) saved(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s *testServer) restore(t *testing.T, snapshot []byte, dry bool) (*RestoreReport, []string, error) {
	t.Helper()
	var steps []string
	r, err := s.restoreLive(t.Context(), bytes.NewReader(snapshot), dry, func(e RestoreEvent) { steps = append(steps, e.Step) })
	left, lerr := filepath.Glob(filepath.Join(s.cfg.DataDir, "raft", "restore", "upload-*"))
	if lerr != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, lerr)
	}
	return r, steps, err
}

func TestRestoreLive(t *testing.T) {
	s := startServer(t, testConfig(t.TempDir()))
	maps, secrets := s.client.CoreV1().ConfigMaps("default"), s.client.CoreV1().Secrets("default")
	word := func(w string) map[string]string { return map[string]string{"word": w} }
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "changed"}, Data: word("before")}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kept, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "same"}, Data: word("same")}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: word("before")}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	snapshot := s.saved(t)
	was, err := maps.Update(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "changed"}, Data: word("after")}, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := secrets.Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "joined-since"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.sealer.Rotate(t.Context()); err != nil { // the Secret's key goes
		t.Fatal(err)
	}
	watch, err := maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: was.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()

	plan, _, err := s.restore(t, snapshot, true)
	if err != nil {
		t.Fatal(err)
	}
	told := func(list []backup.Change, resource, name string) bool {
		for _, c := range list {
			if c.Resource == resource && c.Name == name {
				return true
			}
		}
		return false
	}
	if !plan.DryRun || !told(plan.Objects.Added, "secrets", "s") || !told(plan.Objects.Changed, "configmaps", "changed") || !told(plan.Objects.Removed, "configmaps", "new") ||
		told(plan.Objects.Changed, "configmaps", "same") || told(plan.Objects.Removed, "nodes", "joined-since") {
		t.Errorf("dry run: %+v", plan.Objects)
	}
	if got, err := maps.Get(t.Context(), "new", metav1.GetOptions{}); err != nil {
		t.Fatalf("the dry run changed something: %v, %v", got, err)
	}
	left, err := os.ReadDir(filepath.Join(s.cfg.DataDir, "raft", "restore"))
	if err != nil || len(left) > 0 {
		t.Errorf("the dry run left %v, %v", left, err)
	}

	done, steps, err := s.restore(t, snapshot, false)
	if err != nil {
		t.Fatal(err)
	}
	if done.DryRun || done.Revision <= plan.Revision || steps[0] != "received" || steps[len(steps)-1] != "restoring" {
		t.Errorf("report %+v, steps %v", done, steps)
	}
	now, err := maps.Get(t.Context(), "changed", metav1.GetOptions{})
	if err != nil || now.Data["word"] != "before" || now.ResourceVersion <= was.ResourceVersion && len(now.ResourceVersion) <= len(was.ResourceVersion) {
		t.Errorf("changed: %+v, %v; had revision %s", now, err, was.ResourceVersion)
	}
	if same, err := maps.Get(t.Context(), "same", metav1.GetOptions{}); err != nil || same.ResourceVersion != kept.ResourceVersion {
		t.Errorf("what is the same has revision %s, had %s, %v", same.ResourceVersion, kept.ResourceVersion, err)
	}
	if secret, err := secrets.Get(t.Context(), "s", metav1.GetOptions{}); err != nil || string(secret.Data["word"]) != "before" {
		t.Errorf("secret %+v, %v", secret, err)
	}
	if _, err := maps.Get(t.Context(), "new", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was new: %v", err)
	}
	if _, err := s.client.CoreV1().Nodes().Get(t.Context(), "joined-since", metav1.GetOptions{}); err != nil {
		t.Errorf("a node that joined since: %v", err)
	}
	expired := false
	for e := range watch.ResultChan() {
		if expired = apierrors.IsResourceExpired(apierrors.FromObject(e.Object)); expired {
			break
		}
	}
	if !expired {
		t.Error("a watch from before was not told to list again")
	}
	if _, err := maps.Update(t.Context(), was, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update on what was before: %v", err)
	}
	eventually(t, "the leader's duties run", func() (bool, error) { return len(s.leader.Running()) > 10, nil })
	if _, _, err := s.restore(t, snapshot, false); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

func TestRestoreLiveRefuses(t *testing.T) {
	s := startServer(t, testConfig(t.TempDir()))
	snapshot := s.saved(t)
	before := s.state.Revision()
	foreign := func() []byte {
		var b bytes.Buffer
		w, err := fsm.NewWriter(&b, fsm.Header{ClusterID: "other", Revision: 5, Index: 1, Term: 1})
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	flipped := bytes.Clone(snapshot)
	flipped[len(flipped)/2] ^= 1
	for what, c := range map[string]struct {
		body []byte
		want string
	}{
		"nothing": {nil, "not a skiff snapshot"}, "text": {[]byte("kind: List"), "not a skiff snapshot"}, "a part": {snapshot[:len(snapshot)-9], "truncated"},
		"a damaged file": {flipped, "damaged"}, "of another cluster": {foreign, "other"},
	} {
		for _, dry := range []bool{true, false} {
			if _, _, err := s.restore(t, c.body, dry); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", what, err, c.want)
			}
		}
	}
	broken := io.MultiReader(bytes.NewReader(snapshot[:100]), errReader{})
	if _, err := s.restoreLive(t.Context(), broken, false, func(RestoreEvent) {}); !errors.Is(err, errBroken) {
		t.Errorf("an upload that breaks off: %v", err)
	}

	// One at a time, and none that is over comes about later.
	other := RestoreRecord{ID: "x", Phase: "begun", At: time.Now(), Server: "elsewhere"}
	if _, err := s.record(t.Context(), other, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.restore(t, snapshot, false); !errors.Is(err, errRestoring) || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("beside another: %v", err)
	}
	_, rev := s.lastRestore()
	if _, restored, err := s.settleRestore(t.Context(), RestoreRecord{ID: "x", Phase: "failed"}, rev); restored || err != nil {
		t.Errorf("settle what was not done: %v, %v", restored, err)
	}
	if _, restored, err := s.settleRestore(t.Context(), RestoreRecord{ID: "x", Phase: "failed"}, rev); restored || err != nil {
		t.Errorf("settle it again: %v, %v", restored, err)
	}
	b, err := json.Marshal(RestoreRecord{ID: "y", Phase: "done"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.node.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: restoreKey, Value: b, Expect: fsm.Any}))
	if err != nil {
		t.Fatal(err)
	}
	if at, restored, err := s.settleRestore(t.Context(), RestoreRecord{ID: "y", Phase: "failed"}, rev); !restored || at != r.Revision || err != nil {
		t.Errorf("settle what was done: %v, %v, %v", at, restored, err)
	}
	if _, err := s.client.CoreV1().Namespaces().Get(context.Background(), "default", metav1.GetOptions{}); err != nil || s.state.Revision() < before {
		t.Error("something was changed:", err)
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }
