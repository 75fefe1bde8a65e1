//go:build integration

package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestFigures: kubectl top has right rates at its first question, and Prometheus
// gets a node's metrics with the permission for them and with no other.
func TestFigures(t *testing.T) {
	s := shared.server
	s.namespace(t, "figures")
	s.apply(t, `apiVersion: v1
kind: Pod
metadata: {name: busy, namespace: figures, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: spins, image: "skiff.test/busybox:1.36", command: [sh, -c, "while :; do :; done"], resources: {limits: {cpu: 200m, memory: 16Mi}}}
  - {name: sleeps, image: "skiff.test/busybox:1.36", command: [sleep, "86400"]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: prometheus, namespace: figures}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: figures}
rules: [{apiGroups: [""], resources: [nodes/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: figures}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: figures}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: figures}]
`)
	t.Cleanup(func() { s.kubectl(t, "delete", "clusterrole/figures", "clusterrolebinding/figures") })
	s.kubectl(t, "-n", "figures", "wait", "--for=condition=Ready", "pod/busy", "--timeout=240s")

	t.Run("top", func(t *testing.T) {
		ask := func() (map[string]int, string) {
			out := s.kubectl(t, "-n", "figures", "top", "pod", "-l", "app=busy", "--containers", "--no-headers")
			cpus := map[string]int{}
			for line := range strings.Lines(out) {
				var pod, name string
				var milli int
				if _, err := fmt.Sscanf(line, "%s %s %dm", &pod, &name, &milli); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				cpus[name] = milli
			}
			return cpus, out
		}
		// On a busy machine it gets less than its limit.
		if cpus, out := ask(); len(cpus) != 2 || cpus["spins"] < 10 {
			t.Errorf("CPUs %v in\n%s", cpus, out)
		}
		// There the first second may also have been longer than was thought.
		eventually(t, 10*time.Second, func() error {
			if cpus, out := ask(); cpus["spins"] < 10 || cpus["spins"] > 260 || cpus["sleeps"] > 20 {
				return fmt.Errorf("CPUs %v in\n%s", cpus, out)
			}
			return nil
		})
		if err := wants(s.kubectl(t, "top", "node"), "%"); err != nil {
			t.Error(err)
		}
		eventually(t, 10*time.Second, func() error {
			if got := s.jsonpath(t, "figures", "apiservice/v1beta1.metrics.k8s.io", "{.status.conditions[0].status}"); got != "True" {
				return fmt.Errorf("APIService: %q", got)
			}
			return nil
		})
	})

	t.Run("Prometheus", func(t *testing.T) {
		token := s.kubectl(t, "-n", "figures", "create", "token", "prometheus")
		address := s.jsonpath(t, "figures", "nodes", `{.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(s.jsonpath(t, "figures", "configmap/kube-root-ca.crt", `{.data.ca\.crt}`))) {
			t.Fatal("no CA")
		}
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
		for _, tc := range []struct {
			path, token string
			code        int
			want        string
		}{
			{"/metrics", token, 200, "kubelet_running_pods "},
			{"/metrics", token, 200, "skiff_netproxy_pods "},
			{"/metrics/cadvisor", token, 200, `container_memory_working_set_bytes{container="spins",id="/`},
			{"/metrics/cadvisor", token, 200, `container_cpu_cfs_periods_total{container="spins",`},
			{"/metrics/cadvisor", token, 200, `interface="eth0",name="",namespace="figures",pod="busy"}`},
			{"/metrics/resource", token, 200, `container_cpu_usage_seconds_total{container="spins",namespace="figures",pod="busy"}`},
			{"/metrics/probes", token, 200, ""},
			{"/stats/summary", token, 403, "nodes, subresource(s)=[stats]"},
			{"/exec/figures/busy/spins?command=id", token, 403, "verb=create"},
			{"/metrics", "", 401, "Unauthorized"},
			{"/metrics", "made-up", 401, "Unauthorized"},
		} {
			eventually(t, 10*time.Second, func() error {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+":10250"+tc.path, nil)
				if err != nil {
					return err
				}
				if tc.token != "" {
					req.Header.Set("Authorization", "Bearer "+tc.token)
				}
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(body), tc.want) {
					return fmt.Errorf("%s: %s, %v, no %q in %.300q", tc.path, resp.Status, err, tc.want, body)
				}
				return nil
			})
		}
	})

	t.Run("summary", func(t *testing.T) {
		node := s.jsonpath(t, "figures", "pod/busy", "{.spec.nodeName}")
		for _, part := range []string{`"name":"busy","namespace":"figures"`, `"usageNanoCores"`, `"rxBytes"`, `"ephemeral-storage"`, `"name":"pods"`, `"rlimit"`} {
			eventually(t, 10*time.Second, func() error {
				return wants(s.kubectl(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary"), part)
			})
		}
	})
}

// TestSecurityDefaults: what containers get that ask for nothing, and what is
// refused with its reason.
func TestSecurityDefaults(t *testing.T) {
	s := shared.server
	s.namespace(t, "security")
	s.apply(t, `apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: security}
spec:
  restartPolicy: Never
  containers:
  - {name: default, image: "skiff.test/busybox:1.36", command: [grep, "^Seccomp:", /proc/self/status]}
  - {name: unconfined, image: "skiff.test/busybox:1.36", command: [grep, "^Seccomp:", /proc/self/status], securityContext: {seccompProfile: {type: Unconfined}}}
  - {name: privileged, image: "skiff.test/busybox:1.36", command: [grep, "^Seccomp:", /proc/self/status], securityContext: {privileged: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: sysctl, namespace: security}
spec:
  securityContext: {sysctls: [{name: net.core.somaxconn, value: "100"}]}
  containers: [{name: c, image: "skiff.test/busybox:1.36"}]
---
apiVersion: v1
kind: Pod
metadata: {name: profile, namespace: security}
spec:
  securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}
  containers: [{name: c, image: "skiff.test/busybox:1.36"}]
`)
	for _, tc := range []struct{ pod, path, want string }{
		{"plain", "{.status.phase}", "Succeeded"},
		{"sysctl", "{.status.phase} {.status.reason}: {.status.message}", `Failed SysctlForbidden: Pod was rejected: forbidden sysctl: "net.core.somaxconn" not allowlisted`},
		{"profile", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerConfigError"},
	} {
		eventually(t, time.Minute, func() error {
			if got := s.jsonpath(t, "security", "pod/"+tc.pod, tc.path); got != tc.want {
				return fmt.Errorf("%s: %q, want %q", tc.pod, got, tc.want)
			}
			return nil
		})
	}
	for container, mode := range map[string]string{"default": "2", "unconfined": "0", "privileged": "0"} {
		if got := strings.Fields(s.kubectl(t, "-n", "security", "logs", "plain", "-c", container)); len(got) != 2 || got[1] != mode {
			t.Errorf("%s: seccomp mode %q, want %s", container, got, mode)
		}
	}
	eventually(t, time.Minute, func() error {
		return wants(s.jsonpath(t, "security", "pod/profile", "{.status.containerStatuses[0].state.waiting.message}"), `cannot load seccomp profile "none.json"`)
	})
	if err := wants(s.kubectl(t, "-n", "security", "get", "pod", "sysctl"), "SysctlForbidden"); err != nil {
		t.Error(err)
	}
}
