package membership

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// renewalMessage is what the holder of an old certificate signs.
func renewalMessage(r *RenewRequest) []byte {
	sum := sha256.Sum256(r.CSR)
	return fmt.Appendf(nil, "skiff certificate renewal\n%s\n%s\n%x", r.Time.UTC().Format(time.RFC3339Nano), r.Address, sum)
}

// Renew gives a node that was not removed a new certificate. The old one may
// have expired: that it is the node's is proved by the signature.
func (s *Service) Renew(ctx context.Context, r RenewRequest) (*RenewAnswer, error) {
	if err := checkClock(r.Time, s.c.Now()); err != nil {
		return nil, err
	}
	old, err := parseCerts(r.Old)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the old certificate: %v", err)
	}
	trusted, err := parseCerts(s.c.Authority.Bundle())
	if err != nil {
		return nil, fmt.Errorf("CA of the cluster: %w", err)
	}
	if !vouchedFor(trusted, old[0], old[1:], s.c.Now()) {
		return nil, refuse(http.StatusForbidden, "the certificate of this node is of a CA that this cluster does not trust (any more): run skiff reset --delete-data and join again")
	}
	name, id, err := nodeOf(old[0])
	if err != nil {
		return nil, err
	}
	if err := old[0].CheckSignature(x509.ECDSAWithSHA256, renewalMessage(&r), r.Signature); err != nil {
		return nil, refuse(http.StatusForbidden, "the request is not signed with the key of the old certificate")
	}
	if err := s.current(ctx); err != nil {
		return nil, err
	}
	if err := s.known(ctx, name, id, r.Address, old[0]); err != nil {
		return nil, err
	}
	if err := s.checkAddress(RoleAgent, name, r.Address); err != nil {
		return nil, err
	}
	cert, err := s.sign(name, id, r.Address, r.CSR)
	if err != nil {
		return nil, err
	}
	s.c.Logger.Info("the certificate of a node was renewed", "node", name, "expired", s.c.Now().After(old[0].NotAfter))
	return &RenewAnswer{Cert: cert, CA: s.c.Authority.Bundle()}, nil
}

// vouchedFor says whether c, which may have expired, is of one of the CAs, or of one
// that such a CA vouches for in between: the state may be older than the CA that c
// is of, as after a restore.
func vouchedFor(cas []*x509.Certificate, c *x509.Certificate, between []*x509.Certificate, now time.Time) bool {
	of := func(ca *x509.Certificate) bool { return c.CheckSignatureFrom(ca) == nil }
	return slices.ContainsFunc(cas, of) || slices.ContainsFunc(between, func(b *x509.Certificate) bool {
		return of(b) && !now.Before(b.NotBefore) && !now.After(b.NotAfter) &&
			slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return b.CheckSignatureFrom(ca) == nil })
	})
}

// nodeOf reads name and ID of the node whose certificate c is.
func nodeOf(c *x509.Certificate) (name, id string, err error) {
	name, ok := strings.CutPrefix(c.Subject.CommonName, nodeUserPrefix)
	if !ok || name == "" || !slices.Contains(c.Subject.Organization, nodesGroup) {
		return "", "", refuse(http.StatusForbidden, "the certificate of %s is not that of a node", c.Subject.CommonName)
	}
	for _, n := range c.DNSNames {
		if n != name {
			return name, n, nil
		}
	}
	return name, name, nil // its name is its ID
}

// stillMember refuses a node that was removed, or whose name another host has
// taken.
func (s *Service) stillMember(name, id string) error {
	if r := s.removal(id); r != nil {
		return r.error()
	}
	rec, _, err := s.record(name)
	if err != nil {
		return err
	}
	if rec == nil || rec.ID != id {
		return &Refusal{Status: http.StatusForbidden, Removed: true,
			Message: fmt.Sprintf("no member %s with this identity is known (it was removed, or the cluster was restored from an older snapshot); run skiff reset --delete-data and join again", name)}
	}
	return nil
}

// nodeConfig answers an agent that shows its certificate.
func (s *Service) nodeConfig(r *http.Request) (*NodeConfig, error) {
	cert, name, id, err := nodeCertificate(r, s.c.Now())
	if err != nil {
		return nil, err
	}
	if err := s.stillMember(name, id); err != nil {
		// What this server does not know yet, others may.
		if e := s.current(r.Context()); e != nil {
			return nil, e
		}
		if err := s.known(r.Context(), name, id, nodeAddress(cert), cert); err != nil {
			return nil, err
		}
	}
	ca, err := s.signer()
	if err != nil {
		return nil, err
	}
	generation, err := strconv.ParseUint(r.URL.Query().Get("generation"), 10, 64)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the generation of the certificate: %v", err)
	}
	return &NodeConfig{Cluster: s.cluster(), CA: s.c.Authority.Bundle(), Renew: !issuedBy(cert, ca) || generation < s.c.Leaves(),
		FeatureLevel: fsm.LevelOf(s.c.Store.View()), Unfit: s.unfit(r.Context(), id, r.URL.Query())}, nil
}

// nodeAddress is where a node is, or was when its certificate was made.
func nodeAddress(c *x509.Certificate) string {
	for _, ip := range c.IPAddresses {
		if !ip.IsLoopback() {
			return ip.String()
		}
	}
	return "127.0.0.1"
}

func issuedBy(c, ca *x509.Certificate) bool {
	if len(c.AuthorityKeyId) > 0 && len(ca.SubjectKeyId) > 0 {
		return bytes.Equal(c.AuthorityKeyId, ca.SubjectKeyId)
	}
	return bytes.Equal(c.RawIssuer, ca.RawSubject)
}

// nodeCertificate is the verified certificate that the caller shows.
func nodeCertificate(r *http.Request, now time.Time) (c *x509.Certificate, name, id string, err error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil, "", "", refuse(http.StatusUnauthorized, "a node has to show its certificate")
	}
	c = r.TLS.VerifiedChains[0][0]
	if now.After(c.NotAfter) {
		return nil, "", "", refuse(http.StatusUnauthorized, "the certificate of %s expired at %s", c.Subject.CommonName, c.NotAfter.Format(time.RFC3339))
	}
	name, id, err = nodeOf(c)
	return c, name, id, err
}
