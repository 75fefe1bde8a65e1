package service

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/netproxy/nstest"
	v1 "k8s.io/api/core/v1"
)

func TestHealthCheckNodePort(t *testing.T) {
	nstest.Run(t, testHealthCheckNodePort) // nobody else has its ports
}

func testHealthCheckNodePort(t *testing.T) {
	const port int32 = 30090
	h := newHealthServer(slog.Default())
	defer h.close()
	svc := web(func(s *v1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = v1.ServiceTypeLoadBalancer, v1.ServiceExternalTrafficPolicyLocal
		s.Spec.HealthCheckNodePort = port
	})
	ask := func() (int, string, error) {
		c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return r.StatusCode, string(b), err
	}
	for local, want := range map[int]int{2: 200, 0: 503} {
		h.set("ns/web", svc, local)
		code, body, err := 0, "", error(nil)
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if code, body, err = ask(); err == nil {
				break
			}
		}
		if code != want || !strings.Contains(body, fmt.Sprintf(`"localEndpoints":%d`, local)) || !strings.Contains(body, `"name":"web"`) {
			t.Errorf("%d local endpoints: %d %s %v", local, code, body, err)
		}
	}
	svc.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyCluster
	h.set("ns/web", svc, 1)
	if _, _, err := ask(); err == nil {
		t.Error("the port stays open")
	}
	if n := localCount(eps("1@n1", "2@n1/not", "3@n2", "1@n1"), "n1"); n != 1 {
		t.Errorf("local endpoints: %d", n)
	}
}
