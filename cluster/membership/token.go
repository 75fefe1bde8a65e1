package membership

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"strings"
)

// Token admits one or more hosts of one role. Its text is
// skiff1.CA.ID.SECRET, where CA is the base32 SHA-256 of the certificate that
// the joining host will trust.
type Token struct {
	CA     [sha256.Size]byte
	ID     string
	secret string
}

const tokenVersion = "skiff1"

var tokenEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// newToken draws an id and a secret of 128 bits.
func newToken(ca *x509.Certificate) Token {
	return Token{CA: sha256.Sum256(ca.Raw), ID: strings.ToLower(rand.Text()[:8]), secret: strings.ToLower(rand.Text())}
}

// Text is the whole token with its secret.
func (t Token) Text() string {
	return strings.Join([]string{tokenVersion, strings.ToLower(tokenEncoding.EncodeToString(t.CA[:])), t.ID, t.secret}, ".")
}

// String hides the secret.
func (t Token) String() string { return t.ID }

// ParseToken reads the text of a token.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 4 || parts[0] != tokenVersion {
		return Token{}, errors.New("this is no token: want skiff1.CA.ID.SECRET, as skiff token create prints it")
	}
	hash, err := tokenEncoding.DecodeString(strings.ToUpper(parts[1]))
	if err != nil || len(hash) != sha256.Size {
		return Token{}, errors.New("the token is damaged: its second part is no hash; copy it again")
	}
	if !validTokenID(parts[2]) || parts[3] == "" {
		return Token{}, errors.New("the token is damaged: its id or its secret is missing; copy it again")
	}
	return Token{CA: [sha256.Size]byte(hash), ID: parts[2], secret: parts[3]}, nil
}

func validTokenID(id string) bool {
	return id != "" && len(id) <= 32 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// bearer is the part of the token that is sent.
func (t Token) bearer() string { return t.ID + "." + t.secret }
