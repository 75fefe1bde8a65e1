package upgrade

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the steps that decide gives to testdata")

// decision of one case, as its file has it.
type golden struct {
	Steps []step   `json:"steps"`
	Waits []string `json:"waits"`
}

func TestDecide(t *testing.T) {
	cases, err := filepath.Glob("testdata/decide/*/inputs.json")
	if err != nil || len(cases) < 20 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var in Inputs
			readJSON(t, file, &in)
			in.Rollout.Options.complete()
			var got golden
			got.Steps, got.Waits = decide(in)
			compare(t, filepath.Join(dir, "steps.json"), got)
			// What is decided can be done.
			in.Rollout.clone().apply(got.Steps, in.Members, in.Now)
		})
	}
}

func TestPlan(t *testing.T) {
	cases, err := filepath.Glob("testdata/plan/*/inputs.json")
	if err != nil || len(cases) < 5 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var in PlanInputs
			readJSON(t, file, &in)
			compare(t, filepath.Join(dir, "plan.json"), makePlan(in))
		})
	}
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func compare(t *testing.T, file string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs:\n%s", file, got)
	}
}
