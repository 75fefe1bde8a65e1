package backup

import (
	"os"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// steady writes a file at the pace of the disk.
type steady struct {
	f    *os.File
	pace *durable.Pace
}

func newSteady(f *os.File) *steady { return &steady{f, durable.NewPace(f)} }

func (s *steady) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	if err == nil {
		err = s.pace.Wrote(n)
	}
	return n, err
}
