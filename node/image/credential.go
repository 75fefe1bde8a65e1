package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Repository is the repository of a reference, as registries know it.
func Repository(ref string) (string, error) {
	full, err := Normalize(ref)
	if err != nil {
		return "", err
	}
	r, err := repository(full)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// Candidates are the keychains to pull a reference with, one after the other, as
// kubelet tries all credentials that it has for a registry: each has others of k's
// to offer first. There is at least one.
func Candidates(k authn.Keychain, ref string) ([]authn.Keychain, error) {
	all, ok := k.(keychain)
	if !ok {
		return []authn.Keychain{k}, nil
	}
	full, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	r, err := name.ParseReference(full)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidName, full, err)
	}
	var out []authn.Keychain
	seen := map[authn.AuthConfig]bool{}
	for _, e := range all {
		if e.matches(r.Context()) && !seen[e.auth] {
			seen[e.auth] = true
			out = append(out, append(keychain{e}, all...)) // the others may be for a mirror
		}
	}
	if len(out) == 0 {
		out = append(out, k)
	}
	return out, nil
}

// CredentialID names the credentials that k has for a reference, without
// telling them: the SHA-256 of what is sent to the registry. "" is none.
func CredentialID(ctx context.Context, k authn.Keychain, ref string) (string, error) {
	full, err := Normalize(ref)
	if err != nil {
		return "", err
	}
	r, err := name.ParseReference(full)
	if err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrInvalidName, full, err)
	}
	a, err := authn.Resolve(ctx, k, r.Context())
	if err != nil {
		return "", fmt.Errorf("finding credentials for %s: %w", r.Context(), err)
	}
	cfg, err := authn.Authorization(ctx, a)
	if err != nil {
		return "", fmt.Errorf("reading credentials for %s: %w", r.Context(), err)
	}
	if cfg == nil || *cfg == (authn.AuthConfig{}) {
		return "", nil
	}
	b, err := json.Marshal([]string{cfg.Username, cfg.Password, cfg.Auth, cfg.IdentityToken, cfg.RegistryToken})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
