package backup

import (
	"fmt"
	"io"
)

// room keeps a save from filling a disk that others need, the log before all.
type room struct {
	dir   Dir
	floor int64 // bytes that stay free
	last  int64 // bytes written when the disk was asked
	n     int64
}

// roomStep is how much is written before the disk is asked again.
const roomStep = 4 << 20

// newRoom fails if there is no room for a file of that size.
func newRoom(d Dir, size int64) (*room, error) {
	free, whole, err := d.Free()
	if err != nil {
		return nil, err
	}
	r := &room{dir: d, floor: min(256<<20, whole/20)}
	if free-size < r.floor {
		return nil, r.tooSmall(free)
	}
	return r, nil
}

func (r *room) tooSmall(free int64) error {
	return fmt.Errorf("no room in %s: %s are free, and a snapshot must leave %s to others", r.dir, amount(free), amount(r.floor))
}

func amount(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func (r *room) limit(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		if r.n-r.last >= roomStep {
			free, _, err := r.dir.Free()
			if err != nil {
				return 0, err
			}
			if free < r.floor {
				return 0, r.tooSmall(free)
			}
			r.last = r.n
		}
		n, err := w.Write(p)
		r.n += int64(n)
		return n, err
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Room is w, a file in dir, that fails before the disk is so full that others
// have no room.
func Room(dir string, w io.Writer) (io.Writer, error) {
	r, err := newRoom(Dir(dir), 0)
	if err != nil {
		return nil, err
	}
	return r.limit(w), nil
}
