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
