package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/cluster/storage"
)

// Config is what the API server needs. The fields without a default are
// required.
type Config struct {
	// Backend stores the objects.
	Backend *storage.Backend
	// Reservations keeps service addresses and node ports unique.
	Reservations allocator.Reservations

	// Listener is the API port, without TLS; Run closes it.
	Listener net.Listener
	// ServingTLS must verify the client certificates it gets
	// (tls.VerifyClientCertIfGiven): whoever shows one is its subject.
	ServingTLS *tls.Config
	// ExternalAddress is host:port under which clients reach Listener.
	ExternalAddress string

	// TokenKey signs and verifies service-account tokens.
	TokenKey *ecdsa.PrivateKey
	// NodeTLS shows the API server's client certificate to nodes. It is asked for
	// every request, so that it may trust other CAs.
	NodeTLS func() *tls.Config

	// ServiceCIDR is where ClusterIPs come from.
	ServiceCIDR netip.Prefix
	// ClusterDomain names the token issuer; default cluster.local.
	ClusterDomain string

	// PodEvictionTimeout is what pods tolerate by default of a node that is not
	// ready or cannot be reached; nil is 5m.
	PodEvictionTimeout *time.Duration
	// Gossip answers for the leases of nodes (members without a Node left out).
	// Nil: there are none.
	Gossip nodehealth.Gossip

	// MaxReads and MaxWrites limit concurrent requests; defaults 400 and 200.
	// More are answered with 429.
	MaxReads, MaxWrites int
	// RequestTimeout bounds requests that are not long-running; default 1m.
	RequestTimeout time.Duration
	// Handlers are further paths on the API port; one that ends in a slash covers
	// all paths below it. They pass authentication and authorization like all
	// others.
	Handlers map[string]http.Handler
	// OpenHandlers are exact paths that are served before authentication: they
	// have to check their callers themselves. A few of their requests run at a
	// time, with the deadline of all others and a small body.
	OpenHandlers map[string]http.Handler
	// CheckCertificate refuses client certificates that are valid but belong to
	// nobody any more; nil refuses none.
	CheckCertificate func(*x509.Certificate) error
	// TrustedCA says whether a CA is trusted now: callers whose connection is older
	// than that are refused. Nil trusts all that ServingTLS did.
	TrustedCA func(ca *x509.Certificate) bool
	// Fresh returns when Backend holds all that was written in the cluster before
	// the call; nil: it always does. It is asked before somebody is refused for
	// lack of an object.
	Fresh func(ctx context.Context) error
	// Writable says why writes and exact reads are refused now, if so; nil: they
	// never are. /readyz and nothing else depends on it.
	Writable func() error
	// Membership ends when this server was removed from its cluster; its cause says
	// what to do. From then on nothing is served to other hosts but health, and the
	// exact paths of StillServed; requests that take long are ended. Nil: it never
	// does.
	Membership  context.Context
	StillServed []string
	// LongPaths are those of Handlers whose requests have no deadline; one that ends
	// in a slash is a prefix.
	LongPaths []string
	// Profiling serves /debug/pprof to those who may read it.
	Profiling bool

	Logger *slog.Logger
}

const (
	// minWatchTime is how long watches last at least that set no timeout; at most
	// twice as long.
	minWatchTime = 30 * time.Minute
	// maxBodyBytes is upstream's limit on the body of a write.
	maxBodyBytes = 3 << 20
	// apiVersion is the Kubernetes version whose API this is.
	apiVersion = "1.37.2"
)

func (c *Config) complete() error {
	switch {
	case c.Backend == nil:
		return errors.New("api: Backend is missing")
	case c.Reservations == nil:
		return errors.New("api: Reservations are missing")
	case c.Listener == nil:
		return errors.New("api: Listener is missing")
	case c.ServingTLS == nil || c.NodeTLS == nil:
		return errors.New("api: ServingTLS and NodeTLS are needed")
	case c.ServingTLS.ClientAuth != tls.VerifyClientCertIfGiven && c.ServingTLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return errors.New("api: ServingTLS does not verify client certificates")
	case c.TokenKey == nil:
		return errors.New("api: TokenKey is missing")
	case !c.ServiceCIDR.IsValid():
		return errors.New("api: ServiceCIDR is missing")
	case c.Logger == nil:
		return errors.New("api: Logger is missing")
	}
	if _, _, err := net.SplitHostPort(c.ExternalAddress); err != nil {
		return errors.New("api: ExternalAddress must be host:port")
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.MaxReads <= 0 {
		c.MaxReads = 400
	}
	if c.MaxWrites <= 0 {
		c.MaxWrites = 200
	}
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = time.Minute
	}
	return nil
}
