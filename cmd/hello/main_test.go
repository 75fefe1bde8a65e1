package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestAnswers(t *testing.T) {
	env := map[string]string{"NODE_NAME": "n1", "VERSION": "v2", "POD_NAMESPACE": "default"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := newServer(func(k string) string { return env[k] }, "host1")
	go func() { done <- run(ctx, l, s) }()
	get := func(path, accept string) (int, string) {
		req, err := http.NewRequest(http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if _, got := get("/", ""); got != "Hello from pod host1, version v2, on node n1: hit 1\n" {
		t.Errorf("text: %q", got)
	}
	for _, c := range [][2]string{{"/?o=json", ""}, {"/x", "application/json"}} {
		_, got := get(c[0], c[1])
		var a answer
		if err := json.Unmarshal([]byte(got), &a); err != nil {
			t.Fatal(err, got)
		}
		if a.Pod != "host1" || a.Version != "v2" || a.Client != "127.0.0.1" || a.Namespace != "default" {
			t.Errorf("JSON: %+v", a)
		}
	}
	if code, got := get("/healthz", ""); code != 200 || strings.TrimSpace(got) != "ok" {
		t.Errorf("healthz: %d %q", code, got)
	}
	if got := s.hits.Load(); got != 3 {
		t.Errorf("hits: %d, health checks must not count", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
