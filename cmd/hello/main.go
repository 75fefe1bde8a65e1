// Command hello is skiff's own demonstration program, built into skiff as the images
// skiff.local/hello:v1 and :v2. It answers every HTTP request with who it is
// and how many requests it has answered, so that one can see load balancing,
// rolling updates and restarts happen.
//
//	GET /             a line of text, or JSON with ?o=json or Accept: application/json
//	GET /healthz      200 while it serves, 503 once it is told to stop
//
// Environment: PORT (8080), VERSION, and from the pod POD_NAME, POD_NAMESPACE,
// NODE_NAME; the host name stands in for POD_NAME.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	readTimeout     = 10 * time.Second
	shutdownTimeout = 20 * time.Second // below a pod's usual 30 s
	// drainDelay keeps answering after the signal to stop, while the news
	// that this pod is no endpoint any more travels.
	drainDelay = 500 * time.Millisecond
)

// answer is who this program is.
type answer struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace,omitempty"`
	Node      string `json:"node,omitempty"`
	Version   string `json:"version"`
	Hits      int64  `json:"hits"`
	Client    string `json:"client"`
}

type server struct {
	me       answer
	hits     atomic.Int64
	stopping atomic.Bool
}

func newServer(env func(string) string, hostname string) *server {
	return &server{me: answer{
		Pod:       cmp.Or(env("POD_NAME"), hostname),
		Namespace: env("POD_NAMESPACE"),
		Node:      env("NODE_NAME"),
		Version:   cmp.Or(env("VERSION"), "v1"),
	}}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.stopping.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a := s.me
		a.Hits = s.hits.Add(1)
		a.Client, _, _ = net.SplitHostPort(r.RemoteAddr)
		if r.URL.Query().Get("o") == "json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(a) // the client may be gone
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, a.text())
	})
	return mux
}

func (a answer) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Hello from pod %s, version %s", a.Pod, a.Version)
	if a.Node != "" {
		fmt.Fprintf(&b, ", on node %s", a.Node)
	}
	fmt.Fprintf(&b, ": hit %d\n", a.Hits)
	return b.String()
}

func run(ctx context.Context, l net.Listener, s *server) error {
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: readTimeout}
	errc := make(chan error, 1)
	go func() { errc <- srv.Serve(l) }()
	select {
	case err := <-errc:
		return err
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	time.Sleep(drainDelay)
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		return err
	}
	if err := <-errc; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hostname, err := os.Hostname()
	if err == nil {
		var l net.Listener
		if l, err = net.Listen("tcp", ":"+cmp.Or(os.Getenv("PORT"), "8080")); err == nil {
			s := newServer(os.Getenv, hostname)
			fmt.Printf("hello %s listens on %s\n", s.me.Version, l.Addr())
			err = run(ctx, l, s)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
	fmt.Println("hello: stopped as asked")
}
