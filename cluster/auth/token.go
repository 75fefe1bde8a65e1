package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
)

// Tokens signs and verifies service-account tokens (JWT, ES256) as described
// in Kubernetes enhancement 1205: bound to an audience, a time and optionally
// to a Pod, Secret or Node.
type Tokens struct {
	issuer    string
	audiences authenticator.Audiences
	key       *ecdsa.PrivateKey
	keyID     string
	signer    jose.Signer
	objects   Objects
	now       func() time.Time
}

// NewTokens uses key for both directions. issuer is the value of "iss";
// audiences are those the API server itself answers to, the first is the
// default of a TokenRequest.
func NewTokens(key *ecdsa.PrivateKey, issuer string, audiences []string, objects Objects) (*Tokens, error) {
	if issuer == "" || len(audiences) == 0 || key == nil || objects == nil {
		return nil, errors.New("service account tokens need a key, an issuer, an audience and objects to check")
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	id := base64.RawURLEncoding.EncodeToString(sum[:])
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		return nil, fmt.Errorf("make token signer: %w", err)
	}
	return &Tokens{issuer: issuer, audiences: audiences, key: key, keyID: id, signer: signer, objects: objects, now: time.Now}, nil
}

// Audiences the API server answers to.
func (t *Tokens) Audiences() authenticator.Audiences { return t.audiences }

type ref struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid,omitempty"`
}

type kubernetesClaims struct {
	Namespace      string           `json:"namespace"`
	ServiceAccount ref              `json:"serviceaccount"`
	Pod            *ref             `json:"pod,omitempty"`
	Secret         *ref             `json:"secret,omitempty"`
	Node           *ref             `json:"node,omitempty"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

type privateClaims struct {
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
}

// grant is what a token says.
type grant struct {
	claims    kubernetesClaims
	audiences []string
	life      time.Duration
}

// sign makes a token for g; it is valid from now.
func (t *Tokens) sign(g grant) (token string, expires time.Time, err error) {
	now := t.now()
	expires = now.Add(g.life)
	std := jwt.Claims{
		Issuer:    t.issuer,
		Subject:   serviceaccount.MakeUsername(g.claims.Namespace, g.claims.ServiceAccount.Name),
		Audience:  g.audiences,
		ID:        uuid.NewString(),
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(expires),
	}
	token, err = jwt.Signed(t.signer).Claims(std).Claims(privateClaims{g.claims}).Serialize()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign token: %w", err)
	}
	return token, expires, nil
}

// ours tells whether the token names our issuer, without verifying it: others
// are left to other authenticators.
func (t *Tokens) ours(token string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	return json.Unmarshal(payload, &c) == nil && c.Issuer == t.issuer
}

// AuthenticateToken implements authenticator.Token. The objects a token is
// bound to must exist with the same UID.
func (t *Tokens) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if !t.ours(token) {
		return nil, false, nil
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, false, fmt.Errorf("service account token: %w", err)
	}
	var std jwt.Claims
	var private privateClaims
	if err := parsed.Claims(t.key.Public(), &std, &private); err != nil {
		return nil, false, fmt.Errorf("service account token: %w", err)
	}
	now := t.now()
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: t.issuer, Time: now}, 10*time.Second); err != nil {
		if errors.Is(err, jwt.ErrExpired) {
			return nil, false, errors.New("service account token has expired")
		}
		return nil, false, fmt.Errorf("service account token: %w", err)
	}
	wanted, ok := authenticator.AudiencesFrom(ctx)
	if !ok {
		wanted = t.audiences
	}
	audiences := wanted.Intersect(authenticator.Audiences(std.Audience))
	if len(audiences) == 0 {
		return nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(std.Audience), wanted)
	}
	info, err := t.check(ctx, private.Kubernetes)
	if err != nil {
		return nil, false, err
	}
	info.CredentialID = "JTI=" + std.ID
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}

// check resolves the objects the claims name.
func (t *Tokens) check(ctx context.Context, c kubernetesClaims) (*serviceaccount.ServiceAccountInfo, error) {
	sa, err := t.objects.ServiceAccount(ctx, c.Namespace, c.ServiceAccount.Name)
	if err != nil {
		return nil, invalidated("service account", c.ServiceAccount, err)
	}
	if sa.UID != c.ServiceAccount.UID {
		return nil, invalidated("service account", c.ServiceAccount, nil)
	}
	info := &serviceaccount.ServiceAccountInfo{Namespace: c.Namespace, Name: sa.Name, UID: string(sa.UID)}
	if c.Secret != nil {
		s, err := t.objects.Secret(ctx, c.Namespace, c.Secret.Name)
		if err != nil || s.UID != c.Secret.UID {
			return nil, invalidated("secret", *c.Secret, err)
		}
	}
	if c.Pod != nil {
		p, err := t.objects.Pod(ctx, c.Namespace, c.Pod.Name)
		if err != nil || p.UID != c.Pod.UID {
			return nil, invalidated("pod", *c.Pod, err)
		}
		// A token stays good for a minute after its pod should be gone, for
		// its last words.
		if d := p.DeletionTimestamp; d != nil && t.now().After(d.Add(time.Minute)) {
			return nil, invalidated("pod", *c.Pod, nil)
		}
		info.PodName, info.PodUID = c.Pod.Name, string(c.Pod.UID)
	}
	if c.Node != nil {
		if c.Pod == nil {
			n, err := t.objects.Node(ctx, c.Node.Name)
			if err != nil || n.UID != c.Node.UID {
				return nil, invalidated("node", *c.Node, err)
			}
		}
		info.NodeName, info.NodeUID = c.Node.Name, string(c.Node.UID)
	}
	return info, nil
}

func invalidated(kind string, r ref, err error) error {
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("service account token: read %s %s: %w", kind, r.Name, err)
	}
	return fmt.Errorf("service account token has been invalidated: %s %s is gone or was replaced", kind, r.Name)
}
