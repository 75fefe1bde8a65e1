package image

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// The time of a file for each image says when a container of it last began or ended.
// It costs one system call, outlives every restart, and when it can't be written, on
// a full disk, the image merely looks unused for longer than it was.

func (s *Store) usePath(id string) string { return s.path("used", layerName(id)) }

func (s *Store) noteUse(id string) {
	now := time.Now()
	err := os.Chtimes(s.usePath(id), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(s.usePath(id), nil, 0o644)
	}
	if err != nil {
		s.log.Debug("noting that an image is used", "image", id, "err", err)
	}
}

func (s *Store) forgetUse(id string) { _ = os.Remove(s.usePath(id)) }

// LastUsed says when a container was last started from an image or ended, or else
// when the image was pulled.
func (s *Store) LastUsed(i *Image) time.Time {
	if info, err := os.Stat(s.usePath(i.ID)); err == nil && info.ModTime().After(i.PulledAt) {
		return info.ModTime()
	}
	return i.PulledAt
}

// InUse returns the IDs of the images that containers are mounted from.
func (s *Store) InUse() (map[string]bool, error) {
	keys, err := s.Mounts()
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, k := range keys {
		if b, err := os.ReadFile(s.path("mounts", k, "image")); err == nil {
			out[string(b)] = true
		}
	}
	return out, nil
}
