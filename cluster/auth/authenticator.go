package auth

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/token/cache"
	"k8s.io/apiserver/pkg/authentication/user"
)

// tokenCacheTTL bounds how long a token is still accepted after the object it
// is bound to has gone.
const tokenCacheTTL = 10 * time.Second

// Authenticators tells the callers of the API apart.
type Authenticators struct {
	// Request is the whole chain, ending in system:anonymous.
	Request authenticator.Request
	// Token is the part that TokenReview asks.
	Token authenticator.Token
}

// NewAuthenticators accepts client certificates (CN is the user, O the groups)
// and service-account tokens. The TLS server has to verify certificates
// (tls.VerifyClientCertIfGiven): they are not verified again with each request,
// which would cost a fifth of a create. check, if not nil, refuses certificates
// for what their holder has become meanwhile; trusted, if not nil, says whether a
// CA that was good when the connection was made still is.
func NewAuthenticators(tokens *Tokens, check func(*x509.Certificate) error, trusted func(ca *x509.Certificate) bool) Authenticators {
	cached := cache.New(tokens, false, tokenCacheTTL, 0)
	chain := group.NewAuthenticatedGroupAdder(union.New(
		clientCertificate(check, trusted),
		bearertoken.New(cached),
		websocket.NewProtocolAuthenticator(cached),
	))
	return Authenticators{
		Request: union.NewFailOnError(chain, anonymous.NewAuthenticator(nil)),
		Token:   group.NewTokenGroupAdder(cached, []string{user.AllAuthenticated}),
	}
}

// clientCertificate believes what the handshake has verified, until it expires,
// its CA is dropped, or check refuses it.
func clientCertificate(check func(*x509.Certificate) error, trusted func(ca *x509.Certificate) bool) authenticator.RequestFunc {
	return func(r *http.Request) (*authenticator.Response, bool, error) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			return nil, false, nil
		}
		chain := r.TLS.VerifiedChains[0]
		if trusted != nil {
			good := slices.IndexFunc(r.TLS.VerifiedChains, func(c []*x509.Certificate) bool { return trusted(c[len(c)-1]) })
			if good < 0 {
				return nil, false, fmt.Errorf("certificate of %s is of a CA that is no longer trusted", chain[0].Subject)
			}
			chain = r.TLS.VerifiedChains[good]
		}
		for _, c := range chain {
			if now := time.Now(); now.After(c.NotAfter) {
				return nil, false, fmt.Errorf("certificate of %s expired at %s, it is now %s", c.Subject, c.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
			}
		}
		if check != nil {
			if err := check(chain[0]); err != nil {
				return nil, false, err
			}
		}
		return x509request.CommonNameUserConversion.User(chain)
	}
}
