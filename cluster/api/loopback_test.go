package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func request(t *testing.T, ctx context.Context, method, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "https://loop/path?q=1", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLoopbackAnswers(t *testing.T) {
	l := &loopback{}
	if _, err := l.RoundTrip(request(t, t.Context(), "GET", "")); !errors.Is(err, errNotServing) {
		t.Errorf("without a handler: %v", err)
	}
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Path", r.RequestURI)
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "ignored")
		_, _ = w.Write(append([]byte("got "), b...))
	}))
	resp, err := l.RoundTrip(request(t, t.Context(), "POST", "this"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "got this" || resp.StatusCode != http.StatusTeapot ||
		resp.Header.Get("X-Path") != "/path?q=1" || resp.Header.Get("X-Late") != "" {
		t.Errorf("%d %v %q (%v)", resp.StatusCode, resp.Header, body, err)
	}
}

func TestLoopbackStreams(t *testing.T) {
	l := &loopback{}
	next, ended := make(chan string), make(chan struct{})
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		w.(http.Flusher).Flush()
		for {
			select {
			case s := <-next:
				_, _ = io.WriteString(w, s+"\n")
			case <-r.Context().Done():
				return
			}
		}
	}))
	resp, err := l.RoundTrip(request(t, t.Context(), "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for _, s := range []string{"one", "two"} {
		next <- s
		if !lines.Scan() || lines.Text() != s {
			t.Fatalf("got %q, want %q", lines.Text(), s)
		}
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("closing the body does not end the handler")
	}
}

func TestLoopbackPanicCutsTheBody(t *testing.T) {
	l := &loopback{}
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	}))
	resp, err := l.RoundTrip(request(t, t.Context(), "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q %v", b, err)
	}
}

func TestLoopbackCancel(t *testing.T) {
	l := &loopback{}
	l.serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := l.RoundTrip(request(t, ctx, "GET", "")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled request: %v", err)
	}
}

func TestLoopbackSlowReaderHoldsTheWriter(t *testing.T) {
	l := &loopback{}
	const total = 3 * streamLimit
	wrote := make(chan int, 1)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := 0
		for chunk := make([]byte, 64<<10); n < total; n += len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				break
			}
		}
		wrote <- n
	}))
	resp, err := l.RoundTrip(request(t, t.Context(), "GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-wrote:
		t.Fatalf("%d bytes were written without a reader", n)
	case <-time.After(50 * time.Millisecond):
	}
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != total {
		t.Errorf("read %d of %d: %v", n, total, err)
	}
}
