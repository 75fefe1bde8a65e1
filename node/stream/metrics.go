package stream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/skiff-sh/skiff/node/stats"
)

func (s *Server) source() stats.Source {
	return stats.Source{NodeName: s.cfg.NodeName, DataDir: s.cfg.DataDir, Images: s.cfg.Images, Pods: s.cfg.Pods.Views()}
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(s.source().Summary(r.Context(), time.Now())); err != nil {
		s.cfg.Logger.Debug("answering /stats/summary", "err", err)
	}
}

func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	if err := s.source().Resource(r.Context(), w, time.Now()); err != nil {
		s.cfg.Logger.Debug("answering /metrics/resource", "err", err)
	}
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	pods, running, exited := 0, 0, 0
	for _, v := range s.cfg.Pods.Views() {
		if v.Sandbox != nil {
			pods++
		}
		for _, c := range v.Containers {
			switch {
			case c.Running:
				running++
			case c.ID != "":
				exited++
			}
		}
	}
	fmt.Fprintf(w, "# HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods %d\n", pods)
	fmt.Fprintf(w, "# HELP kubelet_running_containers Number of containers currently running\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{container_state=\"running\"} %d\nkubelet_running_containers{container_state=\"exited\"} %d\n", running, exited)
}
