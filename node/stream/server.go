// Package stream is the node's HTTPS API: what the API server asks a kubelet
// on port 10250. Logs are streamed as text; exec, attach and port-forward
// speak SPDY (k8s.io/cri-streaming); the API server translates WebSockets.
//
// Who may call is said at gate: the cluster itself, and those who the cluster's
// rules let read metrics and the like.
package stream

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/stats"
)

const (
	idleTimeout     = 4 * time.Hour
	creationTimeout = 30 * time.Second
)

// Pods are the pods of this node.
type Pods interface {
	Find(namespace, name string, uid types.UID) (*pod.View, error)
	Views() []*pod.View
}

// Images measures what containers wrote.
type Images interface {
	MountUsage(key string) (bytes, inodes int64, err error)
}

// Config configures a Server.
type Config struct {
	Pods     Pods
	Images   Images
	Volumes  Volumes
	NodeName string
	DataDir  string
	ImageDir string // DataDir when empty
	// Meter, Collectors and AllPods are for metrics: what the node has counted, what
	// else is told under /metrics, and the counters of all pods together. They may
	// be nil.
	Meter      *meter.Meter
	Collectors []prometheus.Collector
	AllPods    func() (runtime.Stats, error)
	TLS        *tls.Config // see node.Config
	// Client asks the API server who others are and what they may do; nil lets
	// nobody in but the cluster.
	Client kubernetes.Interface
	Logger *slog.Logger
}

// Server serves the node API.
type Server struct {
	cfg   Config
	mux   *http.ServeMux
	gate  *gate
	rates *stats.Rates
}

// New returns a Server that serves nothing yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), gate: newGate(cfg.NodeName, cfg.Client), rates: &stats.Rates{}}
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	s.mux.HandleFunc("GET /pods", s.pods)
	s.mux.HandleFunc("GET /pods/{$}", s.pods)
	s.mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, p := range []string{"/exec/{namespace}/{pod}/{container}", "/exec/{namespace}/{pod}/{uid}/{container}"} {
		s.mux.HandleFunc("GET "+p, s.exec)
		s.mux.HandleFunc("POST "+p, s.exec)
	}
	for _, p := range []string{"/attach/{namespace}/{pod}/{container}", "/attach/{namespace}/{pod}/{uid}/{container}"} {
		s.mux.HandleFunc("GET "+p, s.attach)
		s.mux.HandleFunc("POST "+p, s.attach)
	}
	for _, p := range []string{"/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"} {
		s.mux.HandleFunc("GET "+p, s.portForward)
		s.mux.HandleFunc("POST "+p, s.portForward)
	}
	s.mux.HandleFunc("DELETE /skiff/volumes/{volume}", s.deleteVolume)
	s.metricsRoutes()
	return s
}

// Serve serves until ctx ends, then closes what is open.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		TLSConfig:         s.cfg.TLS,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.ServeTLS(l, "", ""); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("node API: %w", err)
	}
	return nil
}

// ServeHTTP lets in whom the gate admits.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if no := s.gate.admit(r); no != nil {
		http.Error(w, no.text, no.code)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	for _, v := range s.cfg.Pods.Views() {
		list.Items = append(list.Items, *v.Pod)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(list); err != nil {
		s.cfg.Logger.Debug("answering /pods", "err", err)
	}
}

// target is the container that a request names.
type target struct {
	view *pod.View
	name string
	ctr  pod.ContainerView
}

// find answers the request itself when it returns false.
func (s *Server) find(w http.ResponseWriter, r *http.Request) (t target, ok bool) {
	ns, name := r.PathValue("namespace"), r.PathValue("pod")
	v, err := s.cfg.Pods.Find(ns, name, types.UID(r.PathValue("uid")))
	if err != nil {
		http.Error(w, fmt.Sprintf("pod %q not found in namespace %q", name, ns), http.StatusNotFound)
		return t, false
	}
	t = target{view: v, name: r.PathValue("container")}
	if t.name == "" {
		return t, true
	}
	if t.ctr, ok = v.Containers[t.name]; !ok {
		http.Error(w, fmt.Sprintf("container %s is not valid for pod %s", t.name, name), http.StatusNotFound)
		return t, false
	}
	return t, true
}

// running is find for requests that need a running container.
func (s *Server) running(w http.ResponseWriter, r *http.Request) (t target, ok bool) {
	if t, ok = s.find(w, r); !ok {
		return t, false
	}
	if t.view.Sandbox == nil || !t.ctr.Running {
		http.Error(w, fmt.Sprintf("container not found (%q)", t.name), http.StatusNotFound)
		return t, false
	}
	return t, true
}
