package fsm

import (
	"bytes"
	"crypto/sha256"
	"io"
)

// Check reads a snapshot to its end and says why it is none, not what was written,
// or of a feature level that this program does not know. It looks at the sums, and
// of the keys at those near LevelKey only.
func Check(src io.Reader) error {
	r, err := NewReader(src)
	if err != nil {
		return err
	}
	var near []byte // the last block that may hold LevelKey
	for {
		before := r.sum.Sum(nil)
		kind, body, err := r.next()
		if err != nil {
			return err
		}
		if kind != blockEnd {
			if firstKey(body) <= LevelKey {
				near = append(near[:0], body...)
			}
			continue
		}
		for r.rest, r.last = near, r.last[:0]; len(r.rest) > 0; {
			if _, err := r.key(); err != nil {
				return err
			}
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

// firstKey of a block of keys, which is written in full.
func firstKey(block []byte) string {
	d := decoder{b: block}
	d.uvarint() // shared with the key before, of which there is none
	return string(d.bytes())
}
