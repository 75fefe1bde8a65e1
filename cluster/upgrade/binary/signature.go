package binary

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"aead.dev/minisign"
)

// What is wrong with a signature.
var (
	ErrUnsigned  = errors.New("the binary is not signed")
	ErrSignature = errors.New("the signature does not fit")
)

// Keys are those whose signature makes a binary good; with none, signatures are
// not asked for. Several let a key be replaced.
type Keys []minisign.PublicKey

// ParseKeys reads public keys as minisign writes them: lines of base64, with or
// without the comment line above.
func ParseKeys(text string) (Keys, error) {
	var out Keys
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "untrusted comment:") {
			continue
		}
		var k minisign.PublicKey
		if err := k.UnmarshalText([]byte(line)); err != nil {
			return nil, fmt.Errorf("line %d is no public key of minisign: %w", i+1, err)
		}
		out = append(out, k)
	}
	return out, nil
}

// IDs names the keys as minisign does.
func (k Keys) IDs() []string {
	var out []string
	for _, key := range k {
		out = append(out, keyID(key.ID()))
	}
	return out
}

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// verify reads r to its end. signature is the text of a .minisig file.
func (k Keys) verify(r io.Reader, signature []byte) error {
	hash := minisign.NewReader(r)
	if _, err := io.Copy(io.Discard, hash); err != nil {
		return err
	}
	return k.check(hash, signature)
}

// check is verify of what was read through hash.
func (k Keys) check(hash *minisign.Reader, signature []byte) error {
	if len(k) == 0 {
		return nil
	}
	wanted := "a signature of key " + strings.Join(k.IDs(), " or ") + " is needed"
	if len(bytes.TrimSpace(signature)) == 0 {
		return fmt.Errorf("%w: %s", ErrUnsigned, wanted)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return fmt.Errorf("%w: it is no signature of minisign: %w", ErrSignature, err)
	}
	if s.Algorithm != minisign.HashEdDSA {
		return fmt.Errorf("%w: it is of minisign's old kind: sign with minisign -H", ErrSignature)
	}
	for _, key := range k {
		if key.ID() != s.KeyID {
			continue
		}
		if hash.Verify(key, signature) {
			return nil
		}
		return fmt.Errorf("%w: the binary or the signature was changed after key %s signed it", ErrSignature, keyID(s.KeyID))
	}
	return fmt.Errorf("%w: it is of key %s; %s", ErrSignature, keyID(s.KeyID), wanted)
}
