package cluster

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// Paths of skiff's own API on the API port, beside those of package membership.
// They pass the same authentication and authorization as all others: without a
// role that names them, only system:masters gets in.
const (
	StatusPath   = membership.StatusPath
	SnapshotPath = "/skiff/v1/snapshot"
	// SnapshotLocal is a parameter of SnapshotPath: with "true" the server that is
	// asked gives what it has, without asking the others whether that is all.
	SnapshotLocal = "local"
)

// Status is what `skiff status` shows.
type Status = membership.Status

// snapshotHandlers serves SnapshotPath: the state of the cluster, or what this
// server has of it.
func snapshotHandlers(whole, here func(context.Context, io.Writer) error, log *slog.Logger) map[string]http.Handler {
	return map[string]http.Handler{
		// The snapshot ends with its checksum: a client that reads a whole,
		// verified snapshot has got all of it, whatever happened here.
		SnapshotPath: get(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			snapshot := whole
			switch local := r.URL.Query().Get(SnapshotLocal); local {
			case "":
			case "true":
				snapshot = here
			default:
				http.Error(w, SnapshotLocal+"="+local+": want true, or nothing", http.StatusBadRequest)
				return
			}
			started := &startedWriter{w: w}
			if err := snapshot(r.Context(), started); err != nil {
				log.Warn("send snapshot", "error", err)
				if !started.yes {
					http.Error(w, err.Error(), http.StatusServiceUnavailable)
					return
				}
				panic(http.ErrAbortHandler) // cut the connection: the body is not whole
			}
		}),
	}
}

func get(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET is allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	})
}

// startedWriter knows whether anything was written.
type startedWriter struct {
	w   io.Writer
	yes bool
}

func (s *startedWriter) Write(p []byte) (int, error) {
	s.yes = true
	return s.w.Write(p)
}
