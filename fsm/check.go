package fsm

import (
	"bytes"
	"crypto/sha256"
	"io"
)

// Check reads a snapshot to its end and says why it is none, or not what was
// written. It looks at the sums only, not at the keys.
func Check(src io.Reader) error {
	r, err := NewReader(src)
	if err != nil {
		return err
	}
	for {
		before := r.sum.Sum(nil)
		kind, body, err := r.next()
		if err != nil {
			return err
		}
		if kind != blockEnd {
			continue
		}
		d := decoder{b: body}
		r.keys, r.bytes = d.uvarint(), d.uvarint() // not counted here
		if len(d.b) != sha256.Size || !bytes.Equal(d.b, before) {
			return r.damaged("SHA-256 does not match")
		}
		if err := r.end(body, before); err != io.EOF {
			return err
		}
		return nil
	}
}
