package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestANodeThatWasRemovedAsksNoMore(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Path == "/watch" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		_, _ = io.Copy(w, r.Body)
	}))
	defer s.Close()
	member, leave := context.WithCancelCause(context.Background())
	c := &http.Client{Transport: &memberTransport{RoundTripper: http.DefaultTransport, member: member}}
	resp, err := c.Post(s.URL+"/echo", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	resp.Body.Close()
	watch, err := c.Get(s.URL + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	ended := make(chan error, 1)
	go func() { _, err := io.ReadAll(watch.Body); ended <- err }()
	why := errors.New("this node was removed")
	before := requests.Load()
	leave(why)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the watch ends as if it were complete")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the watch goes on")
	}
	if _, err := c.Post(s.URL+"/echo", "text/plain", strings.NewReader("hello")); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if requests.Load() != before {
		t.Error("it was sent all the same")
	}
}
