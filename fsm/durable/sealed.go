package durable

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrChecksum says that a sealed document is not as it was written.
var ErrChecksum = errors.New("its checksum does not match")

const (
	sumBegin = "{\n  \"sum\": \""
	sumEnd   = "\",\n"
)

// Seal encodes v, which must become a JSON object with at least one field, with a
// checksum of its own as the first field: a SHA-256 of the document with zeros in
// the place of the sum. A bit that is flipped on the disk would often leave JSON of
// another meaning.
func Seal(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte("{\n"))
	if !ok {
		return nil, fmt.Errorf("%T is no JSON object with fields", v)
	}
	out := fmt.Appendf(nil, "%s%064d%s%s\n", sumBegin, 0, sumEnd, rest)
	sum := sha256.Sum256(out)
	hex.Encode(out[len(sumBegin):], sum[:])
	return out, nil
}

// Open decodes what Seal gave into v. A document that has no checksum, as one that
// a person wrote, is only decoded.
func Open(b []byte, v any) error {
	if n := len(sumBegin); bytes.HasPrefix(b, []byte(sumBegin)) && len(b) >= n+64 {
		zeroed := bytes.Clone(b)
		copy(zeroed[n:], fmt.Sprintf("%064d", 0))
		sum := sha256.Sum256(zeroed)
		if string(b[n:n+64]) != hex.EncodeToString(sum[:]) {
			return ErrChecksum
		}
	}
	return json.Unmarshal(b, v)
}
