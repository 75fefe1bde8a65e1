package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster/upgrade"
	"github.com/skiff-sh/skiff/fsm"
)

// ask sends a request for one of skiff's own paths, as an administrator.
func (s *testServer) ask(t testing.TB, method, path string, in any) (int, string) {
	t.Helper()
	client, err := rest.HTTPClientFor(s.config)
	if err != nil {
		t.Fatal(err)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.config.Host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestUpgradeOfOneServer: the plan of a real server, and a roll-out up to the
// order that its executor would carry out.
func TestUpgradeOfOneServer(t *testing.T) {
	c := testConfig(t.TempDir())
	c.Version = "0.1.0"
	s := startServer(t, c)
	q := upgrade.Request{Binary: upgrade.Binary{Version: "0.2.0", SHA256: strings.Repeat("ab", 32), Size: 1 << 20, Platform: "linux/amd64", MinLevel: 1, MaxLevel: 2}, Holder: "test"}
	code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActPlan, q)
	var st upgrade.Status
	if err := json.Unmarshal([]byte(text), &st); code != http.StatusOK || err != nil || st.Plan == nil {
		t.Fatalf("%d %s", code, text)
	}
	p := st.Plan
	if len(p.Blockers) > 0 || len(p.Members) != 1 || p.Members[0].Skew != 1 || p.LevelAfter != 2 || !strings.Contains(strings.Join(p.Notes, "\n"), "there is one server") {
		t.Errorf("plan %+v", p)
	}
	skip := q
	skip.Binary.Version = "0.3.0"
	if code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActApply, skip); code != http.StatusConflict || !strings.Contains(text, "skip no minor version") {
		t.Errorf("a version is skipped: %d %s", code, text)
	}
	if code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActFinalize, nil); code != http.StatusConflict || !strings.Contains(text, "nothing to finalize") {
		t.Errorf("finalize: %d %s", code, text)
	}
	if code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActPause, nil); code != http.StatusNotFound {
		t.Errorf("pause of nothing: %d %s", code, text)
	}
	if code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActApply, q); code != http.StatusOK {
		t.Fatalf("apply: %d %s", code, text)
	}
	orders := s.Orders()
	await := func(what string, action upgrade.Action) *upgrade.Order {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if o, err := orders.Order(t.Context()); err == nil && o != nil && o.Action == action {
				return o
			}
		}
		t.Fatalf("%s: no order in 20s", what)
		return nil
	}
	o := await("fetch", upgrade.Fetch)
	if err := orders.Report(t.Context(), upgrade.Report{Order: o.ID, Phase: upgrade.Done, Version: "0.1.0"}); err != nil {
		t.Fatal(err)
	}
	o = await("switch", upgrade.Switch)
	if o.Trial != upgrade.DefaultTrial || o.Binary.Version != "0.2.0" {
		t.Errorf("order %+v", o)
	}
	// Nothing is written while it waits.
	quiet, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	events, _, err := s.state.Watch("/skiff/upgrade/", s.state.Revision()).Next(quiet)
	cancel()
	if err == nil {
		t.Errorf("%d changes while nothing happened, of %s", len(events), events[0].Key)
	}
	if err := orders.Report(t.Context(), upgrade.Report{Order: o.ID, Phase: upgrade.Returned, Version: "0.1.0", Error: "it did not start"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, text = s.ask(t, http.MethodGet, upgrade.Path, nil)
		st = upgrade.Status{}
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err, text)
		}
		if st.Rollout.Stopped != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not stop: %s", text)
		}
	}
	if !strings.Contains(st.Rollout.Stopped, "test has gone back to 0.1.0 by itself: it did not start") || st.Rollout.Snapshot == nil {
		t.Errorf("%+v", st.Rollout)
	}
	if code, text := s.ask(t, http.MethodPost, upgrade.Path+"/"+upgrade.ActRollback, nil); code != http.StatusOK {
		t.Errorf("rollback: %d %s", code, text)
	}
}

// TestProgramIsRemembered: another version than the last one is refused where it
// would do harm.
func TestProgramIsRemembered(t *testing.T) {
	dir := t.TempDir()
	log := testConfig(dir).Logger
	NoteProgram(dir, "0.5.0", fsm.MaxLevel, log)
	NoteProgram(dir, "0.5.1", 0, log)
	if p := ReadProgram(dir); p != (LastProgram{"0.5.1", fsm.MaxLevel}) {
		t.Errorf("%+v", p)
	}
	for version, want := range map[string]string{"0.5.0": "", "0.4.9": "", "0.6.0": "", "0.7.0": "a server skips no minor version", "0.3.0": "goes back by one minor"} {
		err := CheckProgram(dir, version, true)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", version, err)
		}
	}
	if err := CheckProgram(dir, "0.8.0", false); err != nil {
		t.Errorf("an agent: %v", err)
	}
	NoteProgram(dir, "0.6.0", fsm.MaxLevel+1, log)
	for _, server := range []bool{true, false} {
		if err := CheckProgram(dir, "0.5.0", server); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("at feature level %d", fsm.MaxLevel+1)) {
			t.Errorf("below the level: %v", err)
		}
	}
	c := testConfig(dir)
	c.Version = "0.6.0"
	if s, err := New(c); err == nil {
		s.Close()
		t.Error("a server starts below the level")
	}
}

func TestDrainTrouble(t *testing.T) {
	owner := func(kind string) []metav1.OwnerReference {
		yes := true
		return []metav1.OwnerReference{{Kind: kind, Name: "x", UID: "x", Controller: &yes}}
	}
	pod := func(name, kind string, ready bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{NodeName: "n"}}
		if kind != "" {
			p.OwnerReferences = owner(kind)
		}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		return p
	}
	done := pod("job", "Job", false)
	done.Status.Phase = corev1.PodSucceeded
	going := pod("going", "ReplicaSet", true)
	going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	pods := []corev1.Pod{pod("web", "ReplicaSet", true), pod("sick", "ReplicaSet", false), pod("log", "DaemonSet", true), pod("bare", "", true), done, going}
	budget := func(app string, allowed int32) policyv1.PodDisruptionBudget {
		return policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: app},
			Spec:   policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
			Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed, CurrentHealthy: 2, DesiredHealthy: 2, ExpectedPods: 2}}
	}
	got := drainTrouble([]policyv1.PodDisruptionBudget{budget("web", 0), budget("sick", 1), budget("log", 0), budget("elsewhere", 0)}, pods)
	if len(got) != 2 || !strings.Contains(got[0], "default/bare on n has no controller") || !strings.Contains(got[1], "default/web allows no eviction now (2 of 2") {
		t.Errorf("%q", got)
	}
	var f upgrade.Facts
	podFacts(pods, []string{"web", "sick", "job", "vanished"}, &f)
	if fmt.Sprint(f.Ready) != "[bare log web]" || fmt.Sprint(f.PodsDown) != "[default/sick]" ||
		fmt.Sprint(f.Left) != "[default/web default/sick default/bare default/going (ends)]" {
		t.Errorf("%+v", f)
	}
}
