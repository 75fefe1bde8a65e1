//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/node/eviction"
)

// TestClusterHousekeeping is about pods that take more than they may of a node's
// disk, logs and process numbers: they go, with kubelet's words, and nobody else.
func TestClusterHousekeeping(t *testing.T) {
	args := []string{"--eviction-hard=" + strings.Join(eviction.DefaultHard, ","), "--eviction-pressure-transition-period=3s", "--container-log-max-size=256Ki", "--container-log-max-files=5", "--pod-max-pids=60"}
	logs := filepath.Join(t.TempDir(), "log")
	c := newCluster(t, dev.Config{Servers: 1, Agents: 1, DiskSize: 512 << 20, ServerArgs: args, AgentArgs: append(slices.Clone(args), "--pod-log-dir="+logs+"/pods")})
	client := c.clients["server-1"]

	t.Run("limits", func(t *testing.T) {
		c.apply(t, greedy("dir", "agent-1", "dd if=/dev/zero of=/v/f bs=1M count=8", "emptyDir: {sizeLimit: 5Mi}", "")+
			greedy("files", "agent-1", "dd if=/dev/zero of=/f bs=1M count=8", "emptyDir: {}", "5Mi")+
			greedy("sum", "agent-1", "dd if=/dev/zero of=/v/f bs=1M count=8", "emptyDir: {}", "5Mi")+
			greedy("modest", "agent-1", "dd if=/dev/zero of=/v/f bs=1M count=2", "emptyDir: {sizeLimit: 5Mi}", "5Mi"))
		for name, want := range map[string]string{
			"dir":   `Usage of EmptyDir volume "v" exceeds the limit "5Mi". `,
			"files": "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
			"sum":   "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
		} {
			evicted(t, client, name, want)
		}
		running(t, client, "modest")
	})

	t.Run("log under load", func(t *testing.T) {
		const lines = 25_000
		c.apply(t, greedy("talker", "agent-1", fmt.Sprintf(
			"sleep 2; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i of a log that is read while it is written; [ $((i %% 100)) = 0 ] && sleep 0.015; done", lines), "emptyDir: {}", ""))
		running(t, client, "talker")
		ctx, cancel := context.WithTimeout(t.Context(), 3*slower*time.Minute)
		defer cancel()
		stream, err := client.CoreV1().Pods("default").GetLogs("talker", &v1.PodLogOptions{Follow: true}).Stream(ctx)
		must(t, err)
		defer stream.Close()
		var text strings.Builder
		buf := make([]byte, 64<<10)
		last := fmt.Sprintf("line %d of", lines)
		for !strings.Contains(text.String()[max(0, text.Len()-200):], last) {
			n, err := stream.Read(buf)
			text.Write(buf[:n])
			if err == io.EOF || err != nil && ctx.Err() != nil {
				break
			}
			must(t, err)
		}
		got := strings.Split(strings.TrimSpace(text.String()), "\n")
		for i, l := range got {
			if !strings.HasPrefix(l, fmt.Sprintf("line %d of", i+1)) {
				t.Fatalf("line %d is %q", i+1, l)
			}
		}
		if len(got) != lines {
			t.Errorf("%d lines of %d", len(got), lines)
		}
		files, err := c.Output(t.Context(), "agent-1", "sh", "-c", "ls "+logs+"/pods/default_talker_*/c")
		must(t, err)
		if n := len(strings.Fields(files)); n < 3 || n > 5 {
			t.Errorf("%d files of a log of %d bytes that is continued every 256 KiB, want 3 to 5: %s", n, text.Len(), files)
		}
	})

	t.Run("log collectors", func(t *testing.T) {
		same, err := c.Output(t.Context(), "agent-1", "sh", "-c", "[ "+logs+"/containers/talker_default_c-*.log -ef "+logs+"/pods/default_talker_*/c/0.log ] && echo same || ls -l "+logs+"/containers")
		must(t, err)
		if same != "same\n" {
			t.Errorf("no link leads to the log of the pod: %s", same)
		}
		c.kubectl(t, "delete", "pod", "talker", "--timeout=240s")
		eventually(t, time.Minute, func() error {
			left, err := c.Output(t.Context(), "agent-1", "sh", "-c", "ls "+logs+"/containers "+logs+"/pods")
			if err == nil && strings.Contains(left, "talker") {
				err = fmt.Errorf("the logs of the pod that is gone are there: %s", left)
			}
			return err
		})
		if left, err := c.Output(t.Context(), "agent-1", "sh", "-c", "ls "+logs+"/containers"); err != nil || !strings.Contains(left, "modest_default_c-") {
			t.Errorf("logs of pods that run: %q, %v", left, err)
		}
	})

	t.Run("fork bomb", func(t *testing.T) {
		c.apply(t, greedy("bomb", "agent-1", "while true; do sleep 1000 & done 2>/dev/null", "emptyDir: {}", ""))
		eventually(t, time.Minute, func() error {
			p, err := getPod(t, client, "bomb")
			if err != nil {
				return err
			}
			if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].RestartCount == 0 {
				return fmt.Errorf("the bomb has not met its limit: %s", p.Status.Phase)
			}
			return nil
		})
		eventually(t, 20*time.Second, func() error { // the node is not short of anything
			_, err := c.try("", "exec", "modest", "--", "true")
			return err
		})
		c.kubectl(t, "delete", "pod", "bomb", "--timeout=240s")
	})

	t.Run("full disk", func(t *testing.T) {
		for _, node := range []string{"agent-1", "server-1"} {
			name := "fill-" + node
			c.apply(t, greedy(name, node, "cat /dev/zero >/v/f", "emptyDir: {}", ""))
			evicted(t, client, name, "The node was low on resource: ephemeral-storage. ")
			eventually(t, time.Minute, func() error { return pressed(t, client, node, v1.ConditionFalse) })
			running(t, client, "modest")
		}
		c.firstWrite(t, "server-1", "after")
	})
	c.undisturbed(t)
}

// greedy is a pod that runs a command and then sleeps.
func greedy(name, node, command, volume, limit string) string {
	resources := "{}"
	if limit != "" {
		resources = "{limits: {ephemeral-storage: " + limit + "}}"
	}
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff.test/busybox:1.36
    command: [sh, -c, %q]
    resources: %s
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, %s}]
`, name, node, command+"; sleep 1000", resources, volume)
}

// getPod fails now and then while a server's disk is full.
func getPod(t *testing.T, client kubernetes.Interface, name string) (*v1.Pod, error) {
	return client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
}

func running(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		p, err := getPod(t, client, name)
		if err != nil {
			return err
		}
		if p.Status.Phase != v1.PodRunning {
			return fmt.Errorf("%s is %s: %s", name, p.Status.Phase, p.Status.Message)
		}
		return nil
	})
}

func evicted(t *testing.T, client kubernetes.Interface, name, message string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		p, err := getPod(t, client, name)
		if err != nil {
			return err
		}
		if p.Status.Phase != v1.PodFailed || p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, message) {
			return fmt.Errorf("%s is %s %s %q, want it evicted: %q", name, p.Status.Phase, p.Status.Reason, p.Status.Message, message)
		}
		return nil
	})
}

// pressed says whether a node says that its disk is short as wanted.
func pressed(t *testing.T, client kubernetes.Interface, node string, want v1.ConditionStatus) error {
	t.Helper()
	n, err := client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeDiskPressure && c.Status != want {
			return fmt.Errorf("%s: DiskPressure %s, want %s", node, c.Status, want)
		}
	}
	return nil
}
