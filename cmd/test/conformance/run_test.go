package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChunks(t *testing.T) {
	var tests []test
	for i := range 20 {
		tests = append(tests, test{Name: string(rune('a' + i)), Slow: i == 3})
	}
	got := chunks(tests, 4, 2, map[string]float64{"e": 100, "f": 300})
	var seen []string
	for _, c := range got {
		if len(c) > 4 {
			t.Errorf("a chunk of %d", len(c))
		}
		for _, x := range c {
			seen = append(seen, x.Name)
		}
	}
	if got[0][0].Name != "f" || got[1][0].Name != "e" || got[2][0].Name != "d" || len(got[0])+len(got[1])+len(got[2]) != 3 {
		t.Errorf("long ones do not come first and alone: %v", got[:3])
	}
	slices.Sort(seen)
	if len(slices.Compact(seen)) != 20 {
		t.Errorf("%d tests are left of 20", len(seen))
	}
}

func TestCauseAndArea(t *testing.T) {
	r := specReport{ContainerHierarchyTexts: []string{"[sig-node] [NodeConformance] [FeatureGate:SidecarContainers] Probing restartable init container"}, LeafNodeText: "ends (now)",
		State: failed, RunTime: 1500 * time.Millisecond, Failure: failure{Message: "Timed out after 30s.\n\n    Expected\n        <int>: 1\n" + strings.Repeat("x", 500)}}
	r.Failure.Location.FileName, r.Failure.Location.LineNumber = "/src/k8s.io/kubernetes/test/e2e/common/node/pods.go", 17
	got := resultOf(&r, "log")
	if got.Area != "[sig-node] Probing restartable init container" || got.State != failed || got.Seconds != 1.5 {
		t.Errorf("%+v", got)
	}
	if want := "Timed out after 30s. | Expected | <int>: 1 | xxx"; !strings.HasPrefix(got.Cause, want) || !strings.HasSuffix(got.Cause, "… (test/e2e/common/node/pods.go:17)") {
		t.Errorf("cause %q", got.Cause)
	}
	if re := regexp.MustCompile(exactly(got.Name)); !re.MatchString("Kubernetes e2e suite "+got.Name) || re.MatchString("Kubernetes e2e suite "+got.Name+" again") {
		t.Errorf("%q does not choose the one test", re)
	}
	if r.State = "timedout"; resultOf(&r, "").State != failed {
		t.Error("a test that timed out has not failed")
	}
}

// program writes a stand-in for e2e.test: it runs the tests that -focus chooses.
func program(t *testing.T, dir string) string {
	t.Helper()
	const script = `#!/bin/sh
spec() { printf '{"ContainerHierarchyTexts":["[sig-x] Area"],"LeafNodeType":"It","LeafNodeText":"%s","State":"%s","Failure":{"Message":"%s"}}' "$1" "$2" "$3"; }
dry=false focus=
for a; do case $a in
  --ginkgo.json-report=*) report=${a#*=};;
  --ginkgo.dry-run) dry=true;;
  --ginkgo.focus=*) focus="$focus ${a#*=}";;
esac; done
echo "$focus" >>"$(dirname "$0")/ran"
if $dry; then { printf '[{"SpecReports":['; spec good passed; printf ,; spec bad passed; printf ,; spec lost passed; printf ']}]'; } >"$report"; exit; fi
case $focus in *lost*) kill -9 $$;; esac
{ printf '[{"SpecReports":['; first=true
for n in good bad; do case $focus in *$n*)
  $first || printf ,; first=false
  if [ $n = good ]; then spec $n passed; else spec $n failed 'it is bad'; fi;;
esac; done; printf ']}]'; } >"$report"
exit 1
`
	path := filepath.Join(dir, "e2e.test")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRunAndGoOn: each result is kept, a process that dies fails its tests, and
// a later run does only what is asked.
func TestRunAndGoOn(t *testing.T) {
	dir := t.TempDir()
	path := program(t, dir)
	ran := func() int {
		b, _ := os.ReadFile(filepath.Join(dir, "ran"))
		return strings.Count(string(b), "\n")
	}
	start := func(flags ...string) (bool, error) {
		o, err := parse(append([]string{"-e2e", path, "-out", filepath.Join(dir, "out"), "-kubeconfig", "none", "-chunk", "1", "-shards", "2"}, flags...))
		if err != nil {
			t.Fatal(err)
		}
		return run(context.Background(), o)
	}
	if all, err := start("-focus", "good$"); !all || err != nil {
		t.Fatal(all, err)
	}
	if all, err := start("-resume"); all || err != nil {
		t.Fatal(all, err)
	}
	if n := ran(); n != 2+1+2 {
		t.Errorf("the program ran %d times, want two lists and three tests", n)
	}
	o, err := parse([]string{"-e2e", path, "-out", filepath.Join(dir, "out"), "-resume"})
	if err != nil {
		t.Fatal(err)
	}
	res, err := openResults(o, &suite{program: path})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"good": "", "bad": "it is bad", "lost": "its process ended before it ran: signal: killed"}
	for name, cause := range want {
		if got, ok := res.known["[sig-x] Area "+name]; !ok || !strings.HasPrefix(got.Cause, cause) || (got.State == passed) != (name == "good") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if err := res.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := start("-failed"); err != nil || ran() != 5+1+2 {
		t.Errorf("%v; the program ran %d times, want a list and what has failed", err, ran())
	}
	if all, err := start("-report"); all || err != nil || ran() != 8+1 {
		t.Errorf("a report: %v %v; the program ran %d times, want only a list", all, err, ran())
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho other\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openResults(o, &suite{program: path}); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("results of another program: %v", err)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	list := []result{{Name: "a one", Area: "a", State: passed}, {Name: "a two", Area: "a", State: failed, Cause: "why"}, {Name: "b one", Area: "b", State: skipped, Cause: "not here"}}
	if printTable(&b, list, 4) {
		t.Error("a failure passes")
	}
	for _, want := range []string{"a     2    1       1       0", "all   2    1       1       1", "50.0 % of 2 passed", "1 have not run", "a two\n      why", "b one\n      not here"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if printTable(&b, list[2:], 1) {
		t.Error("nothing that ran is no success")
	}
}

func TestWrongUse(t *testing.T) {
	for _, c := range []struct{ want, flags string }{
		{"-e2e", ""}, {"is no program", "-e2e ."}, {"-shards", "-e2e /bin/sh -shards 0"}, {"-focus", "-e2e /bin/sh -focus ("}, {"only flags", "-e2e /bin/sh all"},
	} {
		if _, err := parse(strings.Fields(c.flags)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.flags, err)
		}
	}
}
