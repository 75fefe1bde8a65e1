package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// leafLife is how long an issued certificate is valid; backdate covers clocks
// of other hosts that are behind.
const (
	leafLife = 365 * 24 * time.Hour
	backdate = time.Hour
)

// Request describes a leaf certificate. One with hosts is good as a server
// certificate too.
type Request struct {
	CommonName   string
	Organization []string
	// DNSNames and IPs the holder serves under; empty for a pure client.
	DNSNames []string
	IPs      []net.IP
}

// Issue signs a certificate for a new key and returns both as PEM. It is valid
// for one year.
func (p *PKI) Issue(r Request) (certPEM, keyPEM []byte, err error) {
	return p.issue(p.now.Load(), r)
}

func (p *PKI) issue(m *material, r Request) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key for %s: %w", r.CommonName, err)
	}
	if certPEM, err = m.sign(key.Public(), r, p.clock()); err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return certPEM, keyPEM, err
}

// SignCSR signs the public key of a certificate request (PEM) for what r says;
// what the request itself asks for is not looked at. The request must be signed
// with its key.
func (p *PKI) SignCSR(csrPEM []byte, r Request) (certPEM []byte, err error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("the request for a certificate is no PEM block CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the request for a certificate: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request for a certificate is not signed with its key: %w", err)
	}
	if k, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the request for a certificate has a key of type %T, want ECDSA P-256", csr.PublicKey)
	}
	return p.now.Load().sign(csr.PublicKey, r, p.clock())
}

// sign returns the certificate and, while another CA is being phased in, the
// one with which those who only know the old CA get to the new one.
func (m *material) sign(public crypto.PublicKey, r Request, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.CommonName, Organization: r.Organization},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     r.DNSNames,
		IPAddresses:  r.IPs,
	}
	if len(r.DNSNames)+len(r.IPs) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.signer, public, m.signerKey)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", r.CommonName, err)
	}
	return slices.Concat(encodeCert(der), m.crossPEM), nil
}

// Leaf is a certificate that renews itself: whoever asks for it gets a fresh one
// when two thirds of its life are over, when the clock has jumped to before its
// beginning, or when the CA that signs is another. Safe for concurrent use.
type Leaf struct {
	pki *PKI
	req Request

	mu      sync.Mutex
	cert    *tls.Certificate
	certPEM []byte
	keyPEM  []byte
	renewAt time.Time
	from    uint64 // material.epoch that it was issued with
}

var _ CertSource = (*Leaf)(nil)

// Leaf issues the first certificate for r.
func (p *PKI) Leaf(r Request) (*Leaf, error) {
	l := &Leaf{pki: p, req: r}
	if _, err := l.Certificate(); err != nil {
		return nil, err
	}
	return l, nil
}

// Certificate gives the current certificate, renewed when due. When renewal
// fails the old one is given as long as it is valid.
func (l *Leaf) Certificate() (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current()
}

func (l *Leaf) current() (*tls.Certificate, error) {
	m, now := l.pki.now.Load(), l.pki.clock()
	if l.cert != nil && l.from == m.epoch && now.Before(l.renewAt) && !now.Before(l.cert.Leaf.NotBefore) {
		return l.cert, nil
	}
	why := l.why(m, now)
	if err := l.renew(m); err != nil {
		if l.cert != nil && now.Before(l.cert.Leaf.NotAfter) {
			return l.cert, nil
		}
		return nil, err
	}
	if why != "" {
		l.pki.log.Load().Info("certificate issued anew", "name", l.req.CommonName, "because", why, "until", l.cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	return l.cert, nil
}

// why is the reason for which the certificate is not good any more.
func (l *Leaf) why(m *material, now time.Time) string {
	switch {
	case l.cert == nil:
		return ""
	case now.After(l.cert.Leaf.NotAfter):
		return "it had expired at " + l.cert.Leaf.NotAfter.Format(time.RFC3339)
	case now.Before(l.cert.Leaf.NotBefore):
		return "the clock was set back"
	case l.from != m.epoch && m.usual:
		return ""
	case l.from != m.epoch:
		return "the cluster's keys were rotated"
	}
	return "two thirds of its life are over"
}

func (l *Leaf) renew(m *material) error {
	certPEM, keyPEM, err := l.pki.issue(m, l.req)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("load certificate of %s: %w", l.req.CommonName, err)
	}
	l.cert, l.certPEM, l.keyPEM, l.from = &cert, certPEM, keyPEM, m.epoch
	l.renewAt = RenewAt(cert.Leaf)
	return nil
}

// IssuedAt is when a certificate of this package was made: it is valid since a
// while before.
func IssuedAt(c *x509.Certificate) time.Time { return c.NotBefore.Add(backdate) }

// RenewAt is when two thirds of a certificate's life are over.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// PEM gives the current certificate and key.
func (l *Leaf) PEM() (certPEM, keyPEM []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.current(); err != nil {
		return nil, nil, err
	}
	return l.certPEM, l.keyPEM, nil
}

// Pool implements CertSource.
func (l *Leaf) Pool() *x509.CertPool { return l.pki.Pool() }

// RenewAt says when the certificate is next replaced.
func (l *Leaf) RenewAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewAt
}

// ServerTLS serves HTTP with the leaf and asks callers for certificates of the
// CA without requiring them; see the function of the same name.
func (l *Leaf) ServerTLS() *tls.Config { return ServerTLS(l, TLSOptions{}) }
