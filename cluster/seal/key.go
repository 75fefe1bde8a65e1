package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/crypto/scrypt"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// KeyFile is the name of the file in <data-dir>/pki.
const KeyFile = "cluster.key"

// PassphraseEnv names the file with the passphrase of the cluster key.
const PassphraseEnv = "SKIFF_PASSPHRASE_FILE"

var (
	// ErrPassphraseNeeded says that a key file is sealed and no passphrase was
	// given.
	ErrPassphraseNeeded = errors.New("the cluster key is sealed with a passphrase: name its file with --passphrase-file (" + PassphraseEnv + ")")
	// ErrPassphrase says that it is another passphrase.
	ErrPassphrase = errors.New("the passphrase does not open the cluster key")
	// ErrDamaged says that a key file is not as it was written.
	ErrDamaged = errors.New("the cluster key is damaged")
)

const (
	keyBytes   = 32
	plainType  = "SKIFF CLUSTER KEY"
	sealedType = "SKIFF SEALED CLUSTER KEY"
	// maxScrypt bounds what a manipulated file can make us allocate: 1 GiB.
	maxScrypt = 1 << 30
)

// scryptN is the cost of a passphrase: 64 MiB and about a fifth of a second.
// Files name the cost they were made with. Tests lower it.
var scryptN = 1 << 16

const (
	scryptR = 8
	scryptP = 1
)

// Key is the cluster key. It is immutable and safe for concurrent use.
type Key struct {
	raw    [keyBytes]byte
	aead   cipher.AEAD
	id     string
	sealed []byte // the form under a passphrase, if there is one
}

// NewKey draws a key. With a passphrase (not nil) it has a sealed form.
func NewKey(passphrase []byte) (*Key, error) {
	raw := make([]byte, keyBytes)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("draw a cluster key: %w", err)
	}
	k, err := fromRaw(raw)
	if err != nil || passphrase == nil {
		return k, err
	}
	return k.WithPassphrase(passphrase)
}

func fromRaw(raw []byte) (*Key, error) {
	if len(raw) != keyBytes {
		return nil, fmt.Errorf("the cluster key has %d bytes, want %d: it is truncated or no cluster key", len(raw), keyBytes)
	}
	k := &Key{raw: [keyBytes]byte(raw)}
	block, err := aes.NewCipher(raw)
	if err == nil {
		k.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		return nil, fmt.Errorf("use the cluster key: %w", err)
	}
	sum := sha256.Sum256(append([]byte("skiff cluster key "), raw...))
	k.id = hex.EncodeToString(sum[:6])
	return k, nil
}

// ID tells keys apart without telling them.
func (k *Key) ID() string { return k.id }

// Encode gives the plain form of the file. It is a secret.
func (k *Key) Encode() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: plainType, Headers: map[string]string{"Key-Id": k.id}, Bytes: k.raw[:]})
}

// Sealed gives the form under a passphrase, nil if there is none.
func (k *Key) Sealed() []byte { return bytes.Clone(k.sealed) }

// File is what belongs into KeyFile: the sealed form if there is one.
func (k *Key) File() []byte {
	if k.sealed != nil {
		return k.Sealed()
	}
	return k.Encode()
}

// Plain is the same key without a passphrase.
func (k *Key) Plain() *Key {
	c := *k
	c.sealed = nil
	return &c
}

// WithPassphrase is the same key with a sealed form.
func (k *Key) WithPassphrase(passphrase []byte) (*Key, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("the passphrase is empty")
	}
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("draw salt: %w", err)
	}
	by, err := derive(passphrase, salt, scryptN, scryptR, scryptP)
	if err != nil {
		return nil, err
	}
	body, err := by.Wrap(sealedType, k.raw[:])
	if err != nil {
		return nil, err
	}
	c := *k
	c.sealed = pem.EncodeToMemory(&pem.Block{Type: sealedType, Bytes: body, Headers: map[string]string{
		"Key-Id": k.id, "Kdf": "scrypt", "Salt": base64.StdEncoding.EncodeToString(salt),
		"N": strconv.Itoa(scryptN), "R": strconv.Itoa(scryptR), "P": strconv.Itoa(scryptP),
	}})
	return &c, nil
}

func derive(passphrase, salt []byte, n, r, p int) (*Key, error) {
	raw, err := scrypt.Key(passphrase, salt, n, r, p, keyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive a key from the passphrase: %w", err)
	}
	return fromRaw(raw)
}

// ParseKey reads either form. passphrase may be nil for the plain one; it is not
// looked at then.
func ParseKey(b, passphrase []byte) (*Key, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != plainType && block.Type != sealedType {
		return nil, errors.New("it holds no cluster key, or only a part of one")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("something follows the cluster key")
	}
	raw := block.Bytes
	if block.Type == sealedType {
		if passphrase == nil {
			return nil, ErrPassphraseNeeded
		}
		by, err := deriveFor(block, passphrase)
		if err != nil {
			return nil, err
		}
		if raw, err = by.Unwrap(sealedType, raw); err != nil {
			return nil, ErrPassphrase
		}
	}
	k, err := fromRaw(raw)
	if err != nil {
		return nil, err
	}
	if id := block.Headers["Key-Id"]; id != k.id {
		return nil, fmt.Errorf("it is %s and says %q", k.id, id)
	}
	if block.Type == sealedType {
		k.sealed = bytes.Clone(b)
	}
	return k, nil
}

// IsSealed says whether a key file is under a passphrase.
func IsSealed(b []byte) bool {
	block, _ := pem.Decode(b)
	return block != nil && block.Type == sealedType
}

func deriveFor(block *pem.Block, passphrase []byte) (*Key, error) {
	if kdf := block.Headers["Kdf"]; kdf != "scrypt" {
		return nil, fmt.Errorf("the cluster key is sealed by %q, which this version does not know", kdf)
	}
	var cost [3]int
	for i, name := range []string{"N", "R", "P"} {
		v, err := strconv.Atoi(block.Headers[name])
		if err != nil || v < 1 || v > maxScrypt {
			return nil, fmt.Errorf("the sealed cluster key has %s %q", name, block.Headers[name])
		}
		cost[i] = v
	}
	if int64(cost[0])*int64(cost[1]) > maxScrypt/128 || cost[2] > 16 {
		return nil, errors.New("the sealed cluster key asks for too much work")
	}
	salt, err := base64.StdEncoding.DecodeString(block.Headers["Salt"])
	if err != nil || len(salt) < 8 {
		return nil, errors.New("the sealed cluster key has no salt")
	}
	return derive(passphrase, salt, cost[0], cost[1], cost[2])
}

// Wrap seals a few bytes under a name; Unwrap needs the same name.
func (k *Key) Wrap(name string, plain []byte) ([]byte, error) {
	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return k.aead.Seal(nonce, nonce, plain, []byte(name)), nil
}

// Unwrap is the opposite of Wrap.
func (k *Key) Unwrap(name string, sealed []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(sealed) < n {
		return nil, fmt.Errorf("open %s: it is truncated", name)
	}
	plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open %s with cluster key %s: it was sealed with another, or changed", name, k.id)
	}
	return plain, nil
}

// ReadKey reads a key file, whose mode must keep others out.
func ReadKey(path string, passphrase []byte) (*Key, error) {
	b, err := readPrivate(path)
	if st, serr := os.Stat(path); serr == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	k, err := ParseKey(b, passphrase)
	switch {
	case err == nil:
		return k, nil
	case errors.Is(err, ErrPassphraseNeeded), errors.Is(err, ErrPassphrase):
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return nil, fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
}

// ReadPassphrase reads a passphrase from a file that only its owner may read; a
// line break at its end does not count. An empty path gives nil: no passphrase.
func ReadPassphrase(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	b, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return nil, fmt.Errorf("passphrase: %s is empty", path)
	}
	return b, nil
}

// readPrivate reads a regular file, or a pipe, that others can't read.
func readPrivate(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	if mode := st.Mode().Perm(); st.Mode().IsRegular() && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so others can read it: chmod 600 %s", path, mode, path)
	}
	return os.ReadFile(path)
}

// WriteKey puts a key into its file, mode 0600, in one step.
func WriteKey(path string, k *Key) error { return durable.Replace(path, k.File(), 0o600) }
