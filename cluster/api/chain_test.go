package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

func TestOpenPathsComeBeforeAuthentication(t *testing.T) {
	t.Parallel()
	refused := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	h := withOpen(refused, map[string]http.Handler{"/open": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	})})
	for path, want := range map[string]int{"/open": 200, "/open/": 401, "/open/x": 401, "/": 401, "/OPEN": 401} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("x")))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/open", strings.NewReader(strings.Repeat("x", maxOpenBodyBytes+1))))
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a large body: %d", w.Code)
	}
}

func TestOpenPathsAreLimited(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var inside sync.WaitGroup
	inside.Add(maxOpen)
	h := withOpen(http.NotFoundHandler(), map[string]http.Handler{"/open": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside.Done()
		<-release
	})})
	var all sync.WaitGroup
	for range maxOpen {
		all.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/open", nil)) })
	}
	inside.Wait()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/open", nil))
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more: %d", w.Code)
	}
	close(release)
	all.Wait()
	inside.Add(1)
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/open", nil))
	if w.Code != http.StatusOK {
		t.Errorf("afterwards: %d", w.Code)
	}
}
