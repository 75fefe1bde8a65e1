package membership

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// DefaultTokenTTL is how long a token is good for unless asked otherwise.
const DefaultTokenTTL = 24 * time.Hour

// tokenGrace is how long an expired token is remembered, to be able to say that
// it has expired.
const tokenGrace = 24 * time.Hour

// TokenInfo is a token without its secret.
type TokenInfo struct {
	ID          string     `json:"id"`
	Role        Role       `json:"role"` // server (which covers witnesses) or agent
	Description string     `json:"description,omitempty"`
	Created     time.Time  `json:"created"`
	Expires     *time.Time `json:"expires,omitempty"` // nil: never
}

// tokenRecord is what the state holds of a token.
type tokenRecord struct {
	TokenInfo
	Hash string `json:"hash"` // SHA-256 of the secret
}

// TokenRequest asks for a new token. TTL 0 is for ever.
type TokenRequest struct {
	Role        Role          `json:"role"`
	Description string        `json:"description,omitempty"`
	TTL         time.Duration `json:"ttl"` // nanoseconds
}

// NewToken is the answer to a TokenRequest: the only time that the secret is
// seen.
type NewToken struct {
	TokenInfo
	Token string `json:"token"`
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CreateToken makes a token for hosts of one role.
func (s *Service) CreateToken(ctx context.Context, r TokenRequest) (*NewToken, error) {
	if r.Role != RoleServer && r.Role != RoleAgent {
		return nil, refuse(http.StatusBadRequest, "role %q: want server or agent", r.Role)
	}
	if r.TTL < 0 || r.TTL > 0 && r.TTL < time.Second {
		return nil, refuse(http.StatusBadRequest, "ttl %s: want 1s or more, or 0 for a token that never expires", r.TTL)
	}
	if len(r.Description) > 1024 {
		return nil, refuse(http.StatusBadRequest, "description of %d bytes: want at most 1024", len(r.Description))
	}
	ca, err := s.signer()
	if err != nil {
		return nil, err
	}
	t := newToken(ca)
	now := s.c.Now()
	rec := tokenRecord{TokenInfo: TokenInfo{ID: t.ID, Role: r.Role, Description: r.Description, Created: now.UTC().Truncate(time.Second)}, Hash: hashSecret(t.secret)}
	op := fsm.Op{Type: fsm.Put, Key: tokenPrefix + t.ID}
	if r.TTL > 0 {
		at := now.Add(r.TTL).UTC().Truncate(time.Second)
		rec.Expires, op.Expires = &at, at.Add(tokenGrace).Unix()
	}
	if op.Value, err = json.Marshal(rec); err != nil {
		return nil, fmt.Errorf("encode token: %w", err)
	}
	if err := s.propose(ctx, "create a token", op); err != nil {
		return nil, err
	}
	return &NewToken{TokenInfo: rec.TokenInfo, Token: t.Text()}, nil
}

// Tokens lists the tokens that admit hosts now.
func (s *Service) Tokens(ctx context.Context) ([]TokenInfo, error) {
	if err := s.current(ctx); err != nil {
		return nil, err
	}
	out := []TokenInfo{}
	var bad error
	now := s.c.Now()
	s.c.Store.View().Ascend(tokenPrefix, "", func(kv *store.KeyValue) bool {
		rec, err := decodeJSON[tokenRecord](kv.Value)
		if err != nil {
			bad = fmt.Errorf("token %s in the state: %w", strings.TrimPrefix(kv.Key, tokenPrefix), err)
			return false
		}
		if !rec.expired(now) {
			out = append(out, rec.TokenInfo)
		}
		return true
	})
	return out, bad
}

// DeleteToken makes a token useless. Hosts that have joined with it stay.
func (s *Service) DeleteToken(ctx context.Context, id string) error {
	id = strings.TrimSpace(id)
	if t, err := ParseToken(id); err == nil {
		id = t.ID // somebody pasted the whole
	}
	err := s.propose(ctx, "delete token "+id, fsm.Op{Type: fsm.Delete, Key: tokenPrefix + id, Expect: fsm.Any})
	if errors.Is(err, store.ErrNotFound) {
		return refuse(http.StatusNotFound, "there is no token %q; see skiff token list", id)
	}
	return err
}

func (r *tokenRecord) expired(now time.Time) bool { return r.Expires != nil && !now.Before(*r.Expires) }

// checkToken finds the token that a host shows. The caller has made the local
// state current. Nothing is told about a token whose secret is wrong.
func (s *Service) checkToken(shown string) (*tokenRecord, error) {
	wrong := refuse(http.StatusUnauthorized, "the token is wrong or has expired: make a new one on a server with skiff token create")
	id, secret, _ := strings.Cut(shown, ".")
	hash := strings.Repeat("0", 2*sha256.Size)
	var rec *tokenRecord
	if kv, ok := s.c.Store.View().Get(tokenPrefix + id); ok && validTokenID(id) {
		var err error
		if rec, err = decodeJSON[tokenRecord](kv.Value); err != nil {
			return nil, fmt.Errorf("token %s in the state: %w", id, err)
		}
		hash = rec.Hash
	}
	same := subtle.ConstantTimeCompare([]byte(hash), []byte(hashSecret(secret))) == 1
	if rec == nil || !same {
		return nil, wrong
	}
	if now := s.c.Now(); rec.expired(now) {
		return nil, refuse(http.StatusUnauthorized, "the token expired at %s: make a new one on a server with skiff token create", rec.Expires.Format(time.RFC3339))
	}
	return rec, nil
}
