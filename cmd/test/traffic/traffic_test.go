package traffic

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// TestLoad: every kind is counted, and so is each way of not answering.
func TestLoad(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
		}
	}))
	defer srv.Close()
	l := Start(Config{URL: srv.URL, Names: []string{"localhost"}, Every: time.Millisecond})
	await(t, "answers of each kind", func() bool {
		r := l.Report()
		return r.Answered[NewConnection] > 3 && r.Answered[KeptConnection] > 3 && r.Answered[Lookup] > 3
	})
	if r := l.Report(); r.Failed > 0 {
		t.Errorf("failures of a service that answers: %v", r.Failures)
	}
	broken.Store(true)
	await(t, "failures of both kinds", func() bool {
		kinds := map[string]bool{}
		for _, f := range l.Report().Failures {
			kinds[f.Kind] = true
		}
		return kinds[NewConnection] && kinds[KeptConnection]
	})
	broken.Store(false)
	before := l.Report().Answered[KeptConnection]
	await(t, "another kept connection", func() bool { return l.Report().Answered[KeptConnection] > before })
	if r := l.Stop(); r.Failed < 2 || r.Total() == 0 {
		t.Errorf("%+v", r)
	}
}

// TestUnanswered: refused connections and names that do not exist fail.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	l := Start(Config{URL: "http://127.0.0.1:1", Names: []string{"skiff.invalid"}, Every: time.Millisecond})
	await(t, "a failure", func() bool { return l.Report().Failed > 2 })
	if r := l.Stop(); r.Answered[NewConnection]+r.Answered[KeptConnection] > 0 {
		t.Errorf("answers of nobody: %+v", r)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}
