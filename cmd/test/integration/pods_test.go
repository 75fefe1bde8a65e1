//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// box is a pod of busybox with one container; extra is further YAML of its
// spec, command a JSON list.
func box(name, command, extra string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 2
%s
  containers:
  - name: box
    image: skiff.test/busybox:1.36
    command: %s
`, name, extra, command)
}

const sleeper = `["sh","-c","trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done"]`

func (s *server) jsonpath(t *testing.T, ns, what, path string) string {
	t.Helper()
	return s.kubectl(t, "-n", ns, "get", what, "-o", "jsonpath="+path)
}

func TestExitsAndRestarts(t *testing.T) {
	s := shared.server
	s.namespace(t, "exits")
	apply := func(manifest string) {
		if out, err := s.try(manifest, "-n", "exits", "apply", "-f", "-"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	apply(box("done", `["true"]`, "  restartPolicy: Never"))
	apply(box("fails", `["sh","-c","echo oops; exit 7"]`, "  restartPolicy: Never"))
	apply(box("loops", `["sh","-c","exit 3"]`, ""))
	apply(box("nocommand", `["/no/such/thing"]`, ""))
	apply(strings.Replace(box("noimage", `["true"]`, ""), "busybox:1.36", "missing:1", 1))
	apply(strings.Replace(box("eats", `["sh","-c","tail /dev/zero"]`, "  restartPolicy: Never"), "    command:", "    resources: {limits: {memory: 16Mi}}\n    command:", 1))
	apply(box("novolume", `["true"]`, "  volumes: [{name: v, configMap: {name: missing}}]"))
	for _, tc := range []struct{ pod, path, want string }{
		{"done", "{.status.phase} {.status.containerStatuses[0].state.terminated.reason}", "Succeeded Completed"},
		{"fails", "{.status.phase} {.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}", "Failed Error 7"},
		{"loops", "{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].lastState.terminated.exitCode}", "CrashLoopBackOff 3"},
		{"noimage", "{.status.phase} {.status.containerStatuses[0].state.waiting.reason}", "Pending ImagePullBackOff"},
		{"eats", "{.status.phase} {.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}", "Failed OOMKilled 137"},
		{"novolume", "{.status.phase} {.status.containerStatuses[0].state.waiting.reason}", "Pending ContainerCreating"},
	} {
		t.Run(tc.pod, func(t *testing.T) {
			eventually(t, time.Minute, func() error {
				if got := s.jsonpath(t, "exits", "pod/"+tc.pod, tc.path); got != tc.want {
					return fmt.Errorf("status %q, want %q", got, tc.want)
				}
				return nil
			})
		})
	}
	t.Run("nocommand", func(t *testing.T) {
		eventually(t, time.Minute, func() error {
			return wants(s.jsonpath(t, "exits", "pod/nocommand", "{.status.containerStatuses[0]}"), "no such file or directory")
		})
	})
	t.Run("events say why", func(t *testing.T) {
		eventually(t, 30*time.Second, func() error {
			return wants(s.kubectl(t, "-n", "exits", "describe", "pod", "novolume"), `configmap "missing" not found`)
		})
	})
	t.Run("exec in a dead container", func(t *testing.T) {
		if _, err := s.try("", "-n", "exits", "exec", "done", "--", "true"); err == nil {
			t.Error("exec in a pod that has completed succeeded")
		}
	})
	if err := wants(s.kubectl(t, "-n", "exits", "logs", "fails"), "oops"); err != nil {
		t.Error(err)
	}
}

func TestExecLogsCopyForward(t *testing.T) {
	s := shared.server
	s.namespace(t, "streams")
	k := func(args ...string) string { return s.kubectl(t, append([]string{"-n", "streams"}, args...)...) }
	if out, err := s.try(box("talks", sleeper, ""), "-n", "streams", "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := s.try(strings.ReplaceAll(strings.Replace(box("web", "", ""), "    command: \n", "", 1), "busybox:1.36", "nginx:1.22"), "-n", "streams", "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	k("wait", "--for=condition=Ready", "pod/talks", "pod/web", "--timeout=240s")

	t.Run("exec", func(t *testing.T) {
		if got := k("exec", "talks", "--", "sh", "-c", "echo out; echo err >&2"); got != "out\n" {
			t.Errorf("stdout %q", got)
		}
		out, err := s.try("hello\n", "-n", "streams", "exec", "-i", "talks", "--", "cat")
		if err != nil || out != "hello\n" {
			t.Errorf("cat gave %q, %v", out, err)
		}
		_, err = s.try("", "-n", "streams", "exec", "talks", "--", "sh", "-c", "exit 42")
		if err == nil || !strings.Contains(err.Error(), "exit code 42") {
			t.Errorf("exit 42 gave %v", err)
		}
		_, err = s.try("", "-n", "streams", "exec", "talks", "--", "nothere")
		if err == nil || !strings.Contains(err.Error(), "executable file not found") {
			t.Errorf("a missing program gave %v", err)
		}
	})
	t.Run("exec over SPDY", func(t *testing.T) {
		t.Setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
		out, err := s.try("hello\n", "-n", "streams", "exec", "-i", "talks", "--", "cat")
		if err != nil || out != "hello\n" {
			t.Errorf("cat gave %q, %v", out, err)
		}
	})
	t.Run("logs", func(t *testing.T) {
		eventually(t, 10*time.Second, func() error {
			if got := k("logs", "talks", "--tail=1"); got != "up\n" {
				return fmt.Errorf("logs %q", got)
			}
			return nil
		})
		if got := k("logs", "talks", "--timestamps"); !strings.HasPrefix(got, time.Now().UTC().Format("2006-")) {
			t.Errorf("timestamped logs %q", got)
		}
	})
	t.Run("cp", func(t *testing.T) {
		dir := t.TempDir()
		want := bytes.Repeat([]byte("skiff\n"), 50_000)
		src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
		if err := os.WriteFile(src, want, 0o600); err != nil {
			t.Fatal(err)
		}
		k("cp", src, "talks:/tmp/file")
		k("cp", "talks:/tmp/file", back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		kc := stock(s)
		cmd := exec.Command(kc[0], append(kc[1:], "-n", "streams", "port-forward", "--address=127.0.0.1", "pod/web", ":80")...)
		log := &logBuffer{}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		eventually(t, 10*time.Second, func() error {
			_, rest, _ := strings.Cut(log.tail(10), "Forwarding from ")
			addr, _, found := strings.Cut(rest, " ")
			if !found {
				return fmt.Errorf("it says: %q", log.tail(10))
			}
			text, err := visit("http://" + addr + "/")
			if err != nil {
				return err
			}
			return wants(text, "nginx on web")
		})
	})
	t.Run("service by name, through the API server too", func(t *testing.T) {
		k("label", "pod", "web", "app=web")
		k("expose", "pod", "web", "--port=80")
		eventually(t, 15*time.Second, func() error {
			out, err := s.try("", "-n", "streams", "exec", "talks", "--", "wget", "-qO-", "http://web.streams.svc.cluster.local/")
			if err != nil {
				return err
			}
			return wants(out, "nginx on web")
		})
		for _, what := range []string{"services", "pods"} {
			eventually(t, 15*time.Second, func() error {
				out, err := s.try("", "get", "--raw", "/api/v1/namespaces/streams/"+what+"/web:80/proxy/")
				if err != nil {
					return err
				}
				return wants(out, "nginx on web")
			})
		}
	})
}

// TestKillLeavesPodsRunning: kill -9 of skiff, and its return, are invisible to
// pods and to those who use them.
func TestKillLeavesPodsRunning(t *testing.T) {
	s := ownServer(t, "skiff-kill", 3)
	s.apply(t, counterApp)
	s.kubectl(t, "rollout", "status", "deployment/counter", "--timeout=240s")
	s.kubectl(t, "rollout", "status", "deployment/redis", "--timeout=240s")
	const ids = `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`
	before := s.kubectl(t, "get", "pods", "-o", ids)
	url := "http://" + s.Host.Addr + ":30081/"
	answering(t, url)
	l := startLoad(url, 2)
	for range 3 {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // a while without any skiff, under load
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
	}
	l.end(t, "three kills")
	// Names are resolved for each request: were DNS gone with skiff, clients
	// would have spent the time in their resolvers' retries, of 5 s each.
	if l.ok.Load() < 12 {
		t.Errorf("only %d requests were answered", l.ok.Load())
	}
	eventually(t, 20*time.Second, func() error {
		if after := s.kubectl(t, "get", "pods", "-o", ids); after != before {
			return fmt.Errorf("pods before:\n%s\nand after:\n%s", before, after)
		}
		return nil
	})
	// It can still do everything with them.
	s.kubectl(t, "scale", "deployment/counter", "--replicas=1")
	eventually(t, 30*time.Second, func() error {
		if out := s.kubectl(t, "get", "pods", "-l", "app=counter", "-o", "name"); strings.Count(out, "pod/") != 1 {
			return fmt.Errorf("pods: %s", out)
		}
		return nil
	})
	answering(t, url)
}
