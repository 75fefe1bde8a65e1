//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	livesKills = 12 // half of them while pods start, half while they end
	livesPods  = 4  // of each kind, for each kill
)

// lived is a pod that writes a letter into a file of the node for all that
// happens to it. A job ends of itself.
func lived(name, dir string, job bool) string {
	note := func(letters string) string { return fmt.Sprintf("echo %s >> /log/%s", letters, name) }
	// A program is to end well from when its first letter is there.
	serve := func(first, last string) string {
		return fmt.Sprintf("trap '%s; exit 0' TERM; %s; while :; do sleep 0.05; done", note(last), note(first))
	}
	main, policy := serve("c", "C"), "Always"
	if job {
		main, policy = note("c")+"; sleep 0.2; "+note("C"), "Never"
	}
	mount := "volumeMounts: [{name: log, mountPath: /log}]"
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: %s
  terminationGracePeriodSeconds: 180
  volumes: [{name: log, hostPath: {path: %s}}]
  initContainers:
  - name: i
    image: skiff.test/busybox:1.36
    command: [sh, -c, "%s"]
    %s
  - name: s
    image: skiff.test/busybox:1.36
    restartPolicy: Always
    command: [sh, -c, "%s"]
    startupProbe: {exec: {command: [grep, -q, s, /log/%s]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 100}
    %s
  containers:
  - name: c
    image: skiff.test/busybox:1.36
    command: [sh, -c, "%s"]
    %s
    lifecycle:
      postStart: {exec: {command: [sh, -c, "%s"]}}
      preStop: {exec: {command: [sh, -c, "%s"]}}
`, name, policy, dir, note("i"), mount, serve("s", "S"), name, mount, main, mount, note("h"), note("b"))
}

// TestKilledDuringLives kills skiff at random moments while pods start and while
// they end. Each container runs as often as it should, hooks at least once, all
// in their order, and nothing is left. Each step by itself is met by
// TestKilledBetweenEachTwoSteps of node/pod.
func TestKilledDuringLives(t *testing.T) {
	s := ownServer(t, "skiff-lives", 9)
	dir := t.TempDir()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var all []string
	killAt := func(longest time.Duration) {
		time.Sleep(upTo(rnd, longest))
		must(t, s.Kill())
		must(t, s.Start())
	}
	for kill := range livesKills / 2 {
		var names []string
		manifest := ""
		for n := range livesPods {
			for _, kind := range []string{"service", "job"} {
				name := fmt.Sprintf("%s-%d-%d", kind, kill, n)
				names = append(names, name)
				manifest += lived(name, dir, kind == "job") + "---\n"
			}
		}
		all = append(all, names...)
		s.apply(t, manifest)
		killAt(1500 * time.Millisecond)
		eventually(t, time.Minute, func() error {
			for _, name := range names {
				want := "Running true"
				if strings.HasPrefix(name, "job") {
					want = "Succeeded false"
				}
				got, err := s.try("", "get", "pod", name, "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].ready}")
				if err != nil || got != want {
					return fmt.Errorf("%s: %q, want %q, %v", name, got, want, err)
				}
				if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(b), "c") {
					return fmt.Errorf("%s has only begun: %q, %v", name, b, err)
				}
			}
			return nil
		})
		if out, err := s.try("", append([]string{"delete", "pod", "--wait=false"}, names...)...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		killAt(500 * time.Millisecond)
		eventually(t, time.Minute, func() error {
			got, err := s.try("", "get", "pods", "-o", "name")
			if err == nil && got != "" {
				err = fmt.Errorf("still there: %s", strings.Fields(got))
			}
			return err
		})
	}
	for _, name := range all {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		life := strings.Join(strings.Fields(string(b)), "")
		for _, once := range []string{"i", "s", "c", "C", "S"} {
			if n := strings.Count(life, once); n != 1 {
				t.Errorf("%s: %q: %s happened %d times", name, life, once, n)
			}
		}
		order := []string{"i", "s", "c", "C", "S"}
		if !strings.HasPrefix(name, "job") { // of a job the hook may find its container ended
			order = []string{"i", "s", "c", "b", "C", "S"}
			if !strings.Contains(life, "h") {
				t.Errorf("%s: %q: the postStart hook never ran", name, life)
			}
		}
		at := make([]int, 0, len(order))
		for _, what := range order {
			at = append(at, strings.Index(life, what))
		}
		if slices.Contains(at, -1) || !slices.IsSorted(at) {
			t.Errorf("%s: %q is not in the order %v", name, life, order)
		}
	}
	eventually(t, 20*time.Second, func() error { return leftovers(s, nil) })
}
