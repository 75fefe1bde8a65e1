package auth

import (
	"crypto/x509"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/token/cache"
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

// NewAuthenticators accepts client certificates of ca (CN is the user, O the
// groups) and service-account tokens.
func NewAuthenticators(ca *x509.CertPool, tokens *Tokens) Authenticators {
	verify := func() (x509.VerifyOptions, bool) {
		o := x509request.DefaultVerifyOptions()
		o.Roots = ca
		return o, true
	}
	cached := cache.New(tokens, false, tokenCacheTTL, 0)
	chain := group.NewAuthenticatedGroupAdder(union.New(
		x509request.NewDynamic(verify, x509request.CommonNameUserConversion),
		bearertoken.New(cached),
		websocket.NewProtocolAuthenticator(cached),
	))
	return Authenticators{
		Request: union.NewFailOnError(chain, anonymous.NewAuthenticator(nil)),
		Token:   cached,
	}
}
