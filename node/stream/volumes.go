package stream

import (
	"errors"
	"net/http"

	"github.com/skiff-sh/skiff/node/volume"
)

// Volumes deletes the volumes that were provisioned on this node; *volume.Manager
// is one.
type Volumes interface {
	DeleteLocal(pv string) error
}

// deleteVolume serves the reclaim of local-path volumes. It may be repeated: a
// volume that is not there is deleted. One that a pod has is a conflict.
func (s *Server) deleteVolume(w http.ResponseWriter, r *http.Request) {
	pv := r.PathValue("volume")
	err := s.cfg.Volumes.DeleteLocal(pv)
	switch {
	case errors.Is(err, volume.ErrInUse):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, volume.ErrBadName):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		s.cfg.Logger.Warn("deleting a local volume", "volume", pv, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.cfg.Logger.Info("deleted a local volume", "volume", pv)
		w.WriteHeader(http.StatusNoContent)
	}
}
