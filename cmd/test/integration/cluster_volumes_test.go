//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cmd/dev"
)

// keeper is a StatefulSet that writes to a volume of its own, on the agent.
const keeper = `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: keeper}
spec:
  replicas: 2
  serviceName: keeper
  podManagementPolicy: Parallel
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Delete}
  selector: {matchLabels: {app: keeper}}
  template:
    metadata: {labels: {app: keeper}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: agent-1}
      containers:
      - name: box
        image: skiff.test/busybox:1.36
        command: ["sh", "-c", "echo start >> /data/log; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`

// A local-path volume keeps its data through restarts of pods and of skiff, is
// refused what it cannot do, and goes with its claim, also when its node was
// away when that went.
func TestLocalPathVolumes(t *testing.T) {
	c := newCluster(t, dev.Config{Servers: 1, Agents: 1, PlainDisks: true})
	folders := func() []string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(c.Dir(), "nodes", "agent-1", "data", "storage", "pvc-*"))
		must(t, err)
		return found
	}
	said := func(what string, part string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error { return wants(c.kubectl(t, "describe", what), part) })
	}
	c.apply(t, keeper)
	c.kubectl(t, "rollout", "status", "statefulset/keeper", "--timeout=240s")
	if n := len(folders()); n != 2 {
		t.Fatalf("%d folders of volumes on the node", n)
	}
	said("pvc/data-keeper-0", "ProvisioningSucceeded")

	t.Run("data outlives pod and skiff", func(t *testing.T) {
		c.kill(t, "agent-1")
		c.start(t, "agent-1")
		c.healthy(t)
		c.kubectl(t, "delete", "pod", "keeper-0")
		c.kubectl(t, "rollout", "status", "statefulset/keeper", "--timeout=240s")
		eventually(t, 30*time.Second, func() error { // the set's status may be that of before
			got, err := c.try("", "exec", "keeper-0", "--", "cat", "/data/log")
			if err == nil && got != "start\nstart\n" {
				err = fmt.Errorf("the volume has %q after the second start", got)
			}
			return err
		})
	})

	t.Run("refused", func(t *testing.T) {
		for name, tc := range map[string]struct{ args, stdin, want string }{
			"expansion": {`patch pvc data-keeper-0 -p {"spec":{"resources":{"requests":{"storage":"20Mi"}}}}`, "",
				"only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"},
			"shrinking":      {`patch pvc data-keeper-0 -p {"spec":{"resources":{"requests":{"storage":"5Mi"}}}}`, "", "field can not be less than status.capacity"},
			"another volume": {`patch pvc data-keeper-0 -p {"spec":{"volumeName":"other"}}`, "", "spec is immutable after creation"},
		} {
			if out, err := c.try(tc.stdin, strings.Fields(tc.args)...); err == nil || wants(out+err.Error(), tc.want) != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
		c.apply(t, claimAndPod("large", "ReadWriteOnce", "100Ti"))
		said("pod/large", "node(s) did not have enough free storage")
		c.apply(t, claimAndPod("shared", "ReadWriteMany", "1Mi"))
		said("pod/shared", "a volume on one node can only be ReadWriteOnce or ReadWriteOncePod")
		c.kubectl(t, "delete", "pod/large", "pvc/large", "pod/shared", "pvc/shared")
	})

	t.Run("a claim in use stays", func(t *testing.T) {
		c.apply(t, claimAndPod("used", "ReadWriteOncePod", "1Mi"))
		c.kubectl(t, "wait", "--for=condition=Ready", "pod/used", "--timeout=240s")
		c.apply(t, podWith("second", "used"))
		said("pod/second", "ReadWriteOncePod access mode already in-use by another pod")
		c.kubectl(t, "delete", "pvc", "used", "--wait=false")
		if got := c.kubectl(t, "get", "pvc", "used"); !strings.Contains(got, "Terminating") {
			t.Errorf("claim: %s", got)
		}
		c.kubectl(t, "delete", "pod", "second", "used")
		c.kubectl(t, "wait", "--for=delete", "pvc/used", "--timeout=240s")
	})

	t.Run("scaled down", func(t *testing.T) {
		c.kubectl(t, "scale", "statefulset/keeper", "--replicas=1")
		c.kubectl(t, "wait", "--for=delete", "pvc/data-keeper-1", "--timeout=240s")
		eventually(t, 30*time.Second, func() error {
			if n := len(folders()); n != 1 {
				return fmt.Errorf("%d folders: %v", n, folders())
			}
			return nil
		})
	})

	t.Run("deleted while the node is away", func(t *testing.T) {
		pv := strings.TrimSpace(c.kubectl(t, "get", "pvc", "data-keeper-0", "-o", "jsonpath={.spec.volumeName}"))
		c.kill(t, "agent-1")
		c.kubectl(t, "delete", "statefulset/keeper", "--wait=false")
		c.kubectl(t, "delete", "pod", "keeper-0", "--force", "--grace-period=0")
		eventually(t, 60*time.Second, func() error { return wants(c.kubectl(t, "get", "pv", pv), "Released") })
		said("pv/"+pv, "VolumeFailedDelete")
		if _, err := os.Stat(folders()[0]); err != nil {
			t.Errorf("the folder is gone before its node is back: %v", err)
		}
		c.start(t, "agent-1")
		eventually(t, 60*time.Second, func() error {
			if out, err := c.try("", "get", "pv", pv); err == nil {
				return fmt.Errorf("the volume is still there: %s", out)
			}
			if left := folders(); len(left) > 0 {
				return fmt.Errorf("folders are left: %v", left)
			}
			return nil
		})
	})
}

// claimAndPod is a claim and a pod of that name that uses it.
func claimAndPod(name, mode, size string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [%s], resources: {requests: {storage: %s}}}
---
`, name, mode, size) + podWith(name, name)
}

func podWith(name, claim string) string {
	return strings.Replace(box(name, sleeper, "  volumes: [{name: v, persistentVolumeClaim: {claimName: "+claim+"}}]"),
		"    command:", "    volumeMounts: [{name: v, mountPath: /v}]\n    command:", 1)
}
