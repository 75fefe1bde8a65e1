package stream

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/skiff-sh/skiff/node/volume"
)

type volumes map[string]error

func (v volumes) DeleteLocal(pv string) error {
	err, ok := v[pv]
	if !ok {
		return errors.New("asked for " + pv)
	}
	return err
}

func TestDeleteVolume(t *testing.T) {
	s := New(Config{Volumes: volumes{"pv-1": nil, "used": fmt.Errorf("%w: pod a/b has it mounted", volume.ErrInUse), "Bad": volume.ErrBadName, "full": errors.New("I/O error")},
		Logger: slog.New(slog.DiscardHandler)})
	for path, want := range map[string]int{"/skiff/volumes/pv-1": 204, "/skiff/volumes/used": 409, "/skiff/volumes/Bad": 400, "/skiff/volumes/full": 500, "/skiff/volumes/": 404, "/skiff/volumes/a/b": 404} {
		rec := httptest.NewRecorder()
		s.mux.ServeHTTP(rec, httptest.NewRequest("DELETE", path, nil))
		if rec.Code != want {
			t.Errorf("%s: %d %s, want %d", path, rec.Code, rec.Body, want)
		}
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequest("DELETE", "/skiff/volumes/pv-1", nil))
	if rec.Code != 401 {
		t.Errorf("anybody may delete volumes: %d", rec.Code)
	}
}
