package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// index.json begins with a SHA-256 of the rest: a flipped bit would leave an image
// with another command or other layers.
const sumField = `{"sum":"`

func encodeIndex(idx *index) ([]byte, error) {
	b, err := json.Marshal(idx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return append([]byte(sumField+hex.EncodeToString(sum[:])+`",`), b[1:]...), nil
}

// decodeIndex takes an index without a sum too.
func decodeIndex(b []byte) (*index, error) {
	if rest, ok := bytes.CutPrefix(b, []byte(sumField)); ok && len(rest) > 66 {
		sum := sha256.Sum256(append([]byte("{"), rest[66:]...))
		if string(rest[:64]) != hex.EncodeToString(sum[:]) {
			return nil, errors.New("its checksum does not match")
		}
	}
	idx := &index{}
	if err := json.Unmarshal(b, idx); err != nil {
		return nil, err
	}
	if idx.Images == nil {
		idx.Images = map[string]*Image{}
	}
	for id, img := range idx.Images {
		if img == nil || img.ID != id {
			return nil, fmt.Errorf("image %s is not described", id)
		}
	}
	return idx, nil
}

// mend makes the store usable again after damage: images can be pulled or imported
// once more, and containers that run keep their layers, see sweep. An index that
// can't be read is put aside, and images that lack a layer are dropped.
func (s *Store) mend() error {
	path := s.path("index.json")
	_, err := s.read()
	if errors.Is(err, errIndex) {
		s.log.Warn("the list of images is damaged: it is put aside, and images are pulled or imported again", "file", path, "error", err)
		aside := path + ".damaged"
		if err := os.RemoveAll(aside); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	lacks := func(img *Image) string {
		for _, l := range img.Layers {
			if _, err := s.layerInfo(l); err != nil {
				return l
			}
		}
		return ""
	}
	idx, err := s.read()
	if err != nil {
		return err
	}
	whole := true
	for _, img := range idx.Images {
		whole = whole && lacks(img) == ""
	}
	if whole {
		return nil
	}
	return s.update(func(idx *index) error {
		for id, img := range idx.Images {
			if l := lacks(img); l != "" {
				s.log.Warn("an image lacks a layer: it is pulled or imported again", "image", id, "tags", img.RepoTags, "layer", l)
				delete(idx.Images, id)
				clear(idx.Imported) // the archives are looked at again
			}
		}
		return nil
	})
}

// errIndex says that index.json is not as it was written.
var errIndex = errors.New("image store: the index is damaged")

// mountedLayers are the layers below root file systems. known is false if there is
// one of which it is not known: then no layer may go.
func (s *Store) mountedLayers(idx *index) (used map[string]bool, known bool, err error) {
	keys, err := s.Mounts()
	if err != nil {
		return nil, false, err
	}
	used, known = map[string]bool{}, true
	for _, k := range keys {
		b, err := os.ReadFile(s.path("mounts", k, "layers"))
		if err == nil {
			for _, l := range strings.Fields(string(b)) {
				used[l] = true
			}
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		// Mounted by a version that did not write them down, or never mounted.
		id, err := os.ReadFile(s.path("mounts", k, "image"))
		known = known && (err != nil || idx.Images[string(id)] != nil)
	}
	return used, known, nil
}
