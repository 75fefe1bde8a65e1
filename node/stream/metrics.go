package stream

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/component-base/version"

	"github.com/skiff-sh/skiff/node/stats"
)

// metricsRoutes adds what monitoring asks a node for.
func (s *Server) metricsRoutes() {
	self := prometheus.NewRegistry()
	v := version.Get()
	self.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubernetes_build_info", Help: "The version of this node; always 1.", ConstLabels: prometheus.Labels{
			"major": v.Major, "minor": v.Minor, "git_version": v.GitVersion, "git_commit": v.GitCommit, "git_tree_state": v.GitTreeState,
			"build_date": v.BuildDate, "go_version": v.GoVersion, "compiler": v.Compiler, "platform": v.Platform}}, func() float64 { return 1 }))
	self.MustRegister(s.cfg.Collectors...)
	fixed := prometheus.Gatherers{self}
	if s.cfg.Meter != nil {
		fixed = append(fixed, s.cfg.Meter.Kubelet())
		s.mux.Handle("GET /metrics/probes", s.exposition(func(*http.Request) prometheus.Gatherer { return s.cfg.Meter.Probes() }))
	}
	s.mux.Handle("GET /metrics", s.exposition(func(*http.Request) prometheus.Gatherer {
		return append(fixed[:len(fixed):len(fixed)], gatherer(s.source().Kubelet()))
	}))
	s.mux.Handle("GET /metrics/resource", s.exposition(func(r *http.Request) prometheus.Gatherer { return gatherer(s.source().Resource(r.Context())) }))
	s.mux.Handle("GET /metrics/cadvisor", s.exposition(func(r *http.Request) prometheus.Gatherer { return gatherer(s.source().Cadvisor(r.Context())) }))
	s.mux.HandleFunc("GET /stats/summary", s.summary)
	s.mux.HandleFunc("POST /stats/summary", s.summary)
	s.mux.Handle("GET /logs/", http.StripPrefix("/logs/", http.HandlerFunc(s.systemLogs)))
}

// gatherer collects once.
func gatherer(c prometheus.Collector) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return r
}

// exposition serves what of gives for each request, in the format that the
// client prefers.
func (s *Server) exposition(of func(*http.Request) prometheus.Gatherer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		promhttp.HandlerFor(of(r), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
	})
}

func (s *Server) source() stats.Source {
	return stats.Source{NodeName: s.cfg.NodeName, DataDir: s.cfg.DataDir, ImageDir: s.cfg.ImageDir, Images: s.cfg.Images,
		Pods: s.cfg.Pods.Views(), All: s.cfg.AllPods, Rates: s.rates}
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	brief := r.FormValue("only_cpu_and_memory") == "true"
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(s.source().Summary(r.Context(), brief)); err != nil {
		s.cfg.Logger.Debug("answering /stats/summary", "err", err)
	}
}

// systemLogDir is where the machine's own logs are.
const systemLogDir = "/var/log"

// systemLogs serves the machine's logs. Links that lead out of their directory
// are not followed: pods may write there.
func (s *Server) systemLogs(w http.ResponseWriter, r *http.Request) {
	root, err := os.OpenRoot(systemLogDir)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer root.Close()
	http.FileServerFS(root.FS()).ServeHTTP(w, r)
}
