//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStaticPods runs a pod of a manifest through everything that must not touch
// it, and what must.
func TestStaticPods(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", filepath.Join(dir, "web.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	s := ownServer(t, "skiff-static", 10, "--static-pod-path", dir)
	node := strings.TrimPrefix(strings.TrimSpace(s.kubectl(t, "get", "nodes", "-o", "name")), "node/")
	pod := "pod/web-" + node
	first := box("web", sleeper, "")
	write(first)
	running := func(what string, ok func(uid, container string) bool) (uid, container string) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			out, err := s.try("", "get", pod, "-o", "jsonpath={.status.phase} {.metadata.uid} {.status.containerStatuses[0].containerID}")
			if err != nil {
				return err
			}
			f := strings.Fields(out)
			if len(f) != 3 || f[0] != "Running" || !ok(f[1], f[2]) {
				return fmt.Errorf("%s: %q", what, out)
			}
			uid, container = f[1], f[2]
			return nil
		})
		return uid, container
	}
	uid, container := running("runs", func(string, string) bool { return true })
	eventually(t, 20*time.Second, func() error { return wants(s.kubectl(t, "logs", pod), "up") })
	if got := s.kubectl(t, "exec", "web-"+node, "--", "echo", "inside"); got != "inside\n" {
		t.Errorf("exec: %q", got)
	}
	if _, err := s.try("", "delete", pod, "--timeout=240s"); err != nil {
		t.Error(err)
	}
	uid, _ = running("shown again, the same container", func(u, c string) bool { return u != uid && c == container })

	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	second := strings.ReplaceAll(first, "echo up", "echo second") + "  - {name: two, image: skiff.test/busybox:1.36, command: " + sleeper + "}\n"
	half := strings.Index(second, "  - {name: two")
	_, err1 := f.WriteString(second[:half])
	time.Sleep(2 * time.Second)
	running("not touched by half a manifest", func(u, c string) bool { return u == uid && c == container })
	_, err2 := f.WriteString(second[half:])
	if err := errors.Join(err1, err2, f.Close()); err != nil {
		t.Fatal(err)
	}
	uid, changed := running("changed", func(u, c string) bool { return u != uid && c != container })
	eventually(t, time.Minute, func() error { return wants(s.kubectl(t, "logs", pod, "-c", "box"), "second") })
	if got := s.kubectl(t, "get", pod, "-o", "jsonpath={.spec.containers[*].name}"); got != "box two" {
		t.Errorf("containers %q", got)
	}

	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	write("kind: nonsense") // broken while nobody looks
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	running("as it was, after kill -9 and with a broken manifest", func(u, c string) bool { return u == uid && c == changed })
	eventually(t, time.Minute, func() error {
		return wants(s.kubectl(t, "get", "events", "--field-selector", "reason=InvalidManifest", "-o", "jsonpath={.items[*].message}"), "goes on as it was")
	})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if out, err := s.try("", "get", pod); err == nil || !strings.Contains(err.Error(), "not found") {
			return fmt.Errorf("it is still there: %s, %v", out, err)
		}
		return nil
	})
}

// TestDebug looks at pods and at the node with kubectl debug.
func TestDebug(t *testing.T) {
	s := shared.server
	s.namespace(t, "debug")
	if out, err := s.try(box("app", `["sh","-c","while :; do sleep 4711; done"]`, ""), "-n", "debug", "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.kubectl(t, "-n", "debug", "wait", "--for=condition=Ready", "pod/app", "--timeout=240s")
	debug := func(args ...string) { // ours: older ones know no ephemeral containers
		t.Helper()
		args = append([]string{"kubectl", "--kubeconfig", s.Kubeconfig(), "-n", "debug", "debug", "--image=skiff.test/busybox:1.36"}, args...)
		if out, err := exec.Command(shared.binary, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	logs := func(container, want string) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			out, err := s.try("", "-n", "debug", "logs", "app", "-c", container)
			if err != nil {
				return err
			}
			return wants(out, want)
		})
	}
	debug("app", "--target=box", "-c", "near", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
	logs("near", "sleep 4711")
	debug("app", "-c", "apart", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo end")
	logs("apart", "end")
	if out := s.kubectl(t, "-n", "debug", "logs", "app", "-c", "apart"); strings.Contains(out, "4711") {
		t.Errorf("without a target it sees\n%s", out)
	}
	eventually(t, 20*time.Second, func() error {
		if got := s.jsonpath(t, "debug", "pod/app", "{.status.phase} {.status.containerStatuses[0].restartCount} {.status.ephemeralContainerStatuses[*].restartCount}"); got != "Running 0 0 0" {
			return fmt.Errorf("status %q", got)
		}
		return nil
	})
	debug("app", "--copy-to=copy", "--share-processes", "-c", "in", "--", "sleep", "1000")
	s.kubectl(t, "-n", "debug", "wait", "--for=condition=Ready", "pod/copy", "--timeout=240s")
	node := strings.TrimSpace(s.kubectl(t, "get", "nodes", "-o", "name"))
	debug(node, "--", "ls", "-d", "/host/proc/1")
	eventually(t, time.Minute, func() error {
		out, err := s.try("", "-n", "debug", "get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.phase} {end}")
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(out) {
			if strings.HasPrefix(f, "node-debugger-") && strings.HasSuffix(f, "=Succeeded") {
				return nil
			}
		}
		return fmt.Errorf("the node was not looked at: %s", out)
	})
}
