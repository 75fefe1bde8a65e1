package fsm

import "io"

// Check reads a snapshot to its end and says why it is none, or not what was
// written.
func Check(src io.Reader) error {
	r, err := NewReader(src)
	for err == nil {
		_, err = r.Next()
	}
	if err == io.EOF {
		return nil
	}
	return err
}
