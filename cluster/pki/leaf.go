package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key for %s: %w", r.CommonName, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
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
	der, err := x509.CreateCertificate(rand.Reader, template, p.caCert, key.Public(), p.caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s: %w", r.CommonName, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

// Leaf is a certificate that renews itself: whoever asks for it after two
// thirds of its life gets a fresh one. Safe for concurrent use.
type Leaf struct {
	pki *PKI
	req Request
	now func() time.Time

	mu       sync.Mutex
	cert     *tls.Certificate
	certPEM  []byte
	keyPEM   []byte
	renewAt  time.Time
	notAfter time.Time
}

// Leaf issues the first certificate for r.
func (p *PKI) Leaf(r Request) (*Leaf, error) {
	l := &Leaf{pki: p, req: r, now: time.Now}
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
	now := l.now()
	if l.cert != nil && now.Before(l.renewAt) {
		return l.cert, nil
	}
	if err := l.renew(); err != nil {
		if l.cert != nil && now.Before(l.notAfter) {
			return l.cert, nil
		}
		return nil, err
	}
	return l.cert, nil
}

func (l *Leaf) renew() error {
	certPEM, keyPEM, err := l.pki.Issue(l.req)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("load certificate of %s: %w", l.req.CommonName, err)
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	l.cert, l.certPEM, l.keyPEM = &cert, certPEM, keyPEM
	l.renewAt, l.notAfter = cert.Leaf.NotBefore.Add(life*2/3), cert.Leaf.NotAfter
	return nil
}

// PEM gives the current certificate and key.
func (l *Leaf) PEM() (certPEM, keyPEM []byte, err error) {
	if _, err := l.Certificate(); err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.certPEM, l.keyPEM, nil
}

// RenewAt says when the certificate is next replaced.
func (l *Leaf) RenewAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewAt
}

// ServerTLS serves with the leaf and asks callers for certificates of the CA
// without requiring them.
func (l *Leaf) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      l.pki.Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.Certificate() },
	}
}

// MutualTLS serves and dials with the leaf; both sides must show certificates
// of the CA.
func (l *Leaf) MutualTLS() *tls.Config {
	c := l.ServerTLS()
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.RootCAs = l.pki.Pool()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return l.Certificate() }
	return c
}
