package api

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-sh/skiff/cluster/servers"
)

func TestAServerThatWasRemovedServesOnlyItsHost(t *testing.T) {
	t.Parallel()
	member, leave := context.WithCancelCause(context.Background())
	began := make(chan struct{}, 1)
	h := withMembership(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("watch") {
			began <- struct{}{}
			<-r.Context().Done()
		}
	}), member, []string{"/skiff/v1/status"}, func(r *http.Request, _ *apirequest.RequestInfo) bool { return r.URL.Query().Has("watch") },
		scheme.Codecs)
	do := func(method, path string, remote bool) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		r = r.WithContext(apirequest.WithRequestInfo(r.Context(), &apirequest.RequestInfo{APIVersion: "v1"}))
		r.TLS = nil
		if remote {
			r.TLS = &tls.ConnectionState{}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	if w := do("GET", "/api/v1/pods", true); w.Code != http.StatusOK {
		t.Errorf("a member answers %d", w.Code)
	}
	ended := make(chan struct{})
	go func() { do("GET", "/api/v1/pods?watch=1", true); close(ended) }()
	<-began
	leave(errors.New("removed by X: start anew"))
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the watch goes on")
	}
	for path, remote := range map[string]int{"/api/v1/pods": 503, "/skiff/v1/status": 200, "/skiff/v1/status/x": 503, "/readyz": 200, "/readyz/ping": 200, "/readyzx": 503, "/livez": 200, "/skiff/v1/join": 503} {
		for _, method := range []string{"GET", "POST"} {
			w := do(method, path, true)
			if w.Code != remote {
				t.Errorf("%s %s: %d, want %d", method, path, w.Code, remote)
			}
			if w.Code == 200 && (w.Header().Get(servers.RemovedHeader) != "") != strings.HasPrefix(path, "/skiff/") {
				t.Errorf("%s %s: %v", method, path, w.Header())
			}
			if w.Code == 503 && (!strings.Contains(w.Body.String(), "removed by X: start anew") || w.Header().Get("Retry-After") != "" || w.Header().Get(servers.RemovedHeader) == "") {
				t.Errorf("%s %s: %v %s", method, path, w.Header(), w.Body)
			}
			if w := do(method, path, false); w.Code != http.StatusOK {
				t.Errorf("%s %s of this host: %d", method, path, w.Code)
			}
		}
	}
}
