package stream

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// clusterRules knows the token of prometheus, which may read metrics, and that
// of operator, which may get nodes/proxy. It counts what it is asked.
func clusterRules() (c *fake.Clientset, asked map[string]int) {
	c, asked = fake.NewClientset(), map[string]int{}
	c.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked["token"]++
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		switch r.Spec.Token {
		case "prometheus", "operator":
			r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: r.Spec.Token, Groups: []string{"g"}}}
		case "outage":
			return true, nil, errors.New("no server answers")
		}
		return true, r, nil
	})
	c.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked["access"]++
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := r.Spec.ResourceAttributes
		if at.Resource == "nodes" && at.Name == "n1" && at.Verb == "get" {
			r.Status.Allowed = r.Spec.User == "prometheus" && at.Subresource == "metrics" || r.Spec.User == "operator" && at.Subresource == "proxy" ||
				r.Spec.User == "jane" && len(r.Spec.Groups) == 2 && r.Spec.Groups[1] == "system:authenticated" && at.Subresource == "stats"
		}
		return true, r, nil
	})
	return c, asked
}

func TestOthersMayDoWhatTheRulesAllow(t *testing.T) {
	api, asked := clusterRules()
	base, c, _, _ := serveAsking(t, api)
	call := func(token, method, path string, certs ...tls.Certificate) (int, string) {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.pool(), Certificates: certs}}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, tc := range []struct {
		token, method, path string
		code                int
		text                string
	}{
		{"", "GET", "/metrics", 401, "Unauthorized"},
		{"stranger", "GET", "/metrics", 401, "Unauthorized"},
		{"outage", "GET", "/metrics", 503, "no server answers"},
		{"prometheus", "GET", "/metrics", 200, "kubelet_running_pods"},
		{"prometheus", "GET", "/metrics/resource", 200, "container_cpu"},
		{"prometheus", "GET", "/stats/summary", 403, "Forbidden (user=prometheus, verb=get, resource=nodes, subresource(s)=[stats])"},
		{"prometheus", "GET", "/pods", 403, "[pods proxy]"},
		{"prometheus", "GET", "/metricsx", 403, "[proxy]"},
		{"operator", "GET", "/pods", 200, "PodList"},
		{"operator", "GET", "/containerLogs/ns/p/c", 200, "out"},
		{"operator", "GET", "/healthz", 200, "ok"},
		{"operator", "GET", "/metrics", 403, "[metrics]"},
		{"operator", "GET", "/exec/ns/p/c?command=id&output=1", 403, "verb=create"}, // to read is not to run
		{"operator", "POST", "/exec/ns/p/c?command=id&output=1", 403, "verb=create"},
		{"operator", "DELETE", "/skiff/volumes/pv", 403, "verb=delete"},
	} {
		if code, text := call(tc.token, tc.method, tc.path); code != tc.code || !strings.Contains(text, tc.text) {
			t.Errorf("%s %s %s: %d %s", tc.token, tc.method, tc.path, code, text)
		}
	}
	jane := c.issue(t, "jane", "devs")
	if code, text := call("", "GET", "/stats/summary", jane); code != 200 {
		t.Errorf("a user's certificate: %d %s", code, text)
	}
	if code, text := call("prometheus", "GET", "/pods", jane); code != 403 || !strings.Contains(text, "user=jane") {
		t.Errorf("the certificate comes first: %d %s", code, text)
	}
	before := asked["token"] + asked["access"]
	if code, _ := call("prometheus", "GET", "/metrics"); code != 200 || asked["token"]+asked["access"] != before {
		t.Errorf("%d, asked again", code)
	}
}

func TestPathsDoNotEscapeTheGate(t *testing.T) {
	for path, want := range map[string]string{
		"/metrics/../pods":   "metrics", // the mux redirects to the clean path, which is asked for again
		"/metrics/cadvisor":  "metrics",
		"/logs/":             "log",
		"/configz":           "configz proxy",
		"/runningpods/":      "pods proxy",
		"/":                  "proxy",
		"//metrics":          "proxy",
		"/attach/a/b/c":      "proxy",
		"/portForward/ns/po": "proxy",
	} {
		_, got := attributes(httptest.NewRequest(http.MethodGet, "http://n"+path, nil))
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q", path, got)
		}
	}
}
