package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// CertSource is a holder of a certificate that knows whom to trust: a Leaf on
// servers, an agent's identity elsewhere. Both methods are asked at every
// handshake, must be quick and safe for concurrent use.
type CertSource interface {
	// Certificate is shown to the peer.
	Certificate() (*tls.Certificate, error)
	// Pool holds the CAs that are trusted now. It is not changed by the caller.
	Pool() *x509.CertPool
}

// TLSOptions add to what a CertSource decides.
type TLSOptions struct {
	// Protos are offered by ALPN; the default is HTTP/2 and HTTP/1.1. They must be
	// given here: what is set in a server's tls.Config afterwards does not count,
	// because every handshake gets a configuration of its own.
	Protos []string
	// Verify refuses peers whose chain is good; nil lets all pass. It is not asked
	// when the peer showed no certificate.
	Verify func(peer *x509.Certificate) error
}

func (o TLSOptions) protos() []string {
	if o.Protos == nil {
		return []string{"h2", "http/1.1"}
	}
	return o.Protos
}

// handshakeTimeout bounds a handshake of DialTLS whose context has no deadline.
const handshakeTimeout = 10 * time.Second

// ServerTLS serves with the source's certificate and asks callers for one of a
// trusted CA without requiring it. Certificate and CAs are those of the moment
// of each handshake; sessions are never resumed, so no caller outlives its CA
// that way.
func ServerTLS(s CertSource, o TLSOptions) *tls.Config {
	return serverTLS(s, o, tls.VerifyClientCertIfGiven)
}

func serverTLS(s CertSource, o TLSOptions, auth tls.ClientAuthType) *tls.Config {
	base := tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: auth, NextProtos: o.protos(), SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Certificate() },
	}
	if o.Verify != nil {
		base.VerifyConnection = func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 0 {
				return nil // ClientAuth has let it pass
			}
			return o.Verify(c.PeerCertificates[0])
		}
	}
	now := base.Clone()
	now.ClientCAs = s.Pool() // for those who look; each handshake gets the present ones
	now.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = s.Pool()
		return c, nil
	}
	return now
}

// MutualTLS serves and dials; both sides must show a certificate of a trusted
// CA. Which address the peer has does not matter, so o.Verify has to say who it
// may be; without it every dialled peer is refused.
func MutualTLS(s CertSource, o TLSOptions) *tls.Config {
	c := serverTLS(s, o, tls.RequireAndVerifyClientCert)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate() }
	// The library would verify against CAs of the time when the configuration was
	// made, so VerifyConnection does it: the whole chain, then who it is.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if o.Verify == nil {
			return errors.New("nothing says which server this may be")
		}
		return verifyPeer(state, s.Pool(), x509.ExtKeyUsageServerAuth, o.Verify)
	}
	return c
}

func verifyPeer(state tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage, verify func(*x509.Certificate) error) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the peer has shown no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	peer := state.PeerCertificates[0]
	if _, err := peer.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return err
	}
	return verify(peer)
}

// ClientTLS is a configuration for one connection made now: it shows the
// source's certificate and trusts its present CAs. The peer's address is
// verified as usual.
func ClientTLS(s CertSource, o TLSOptions) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: s.Pool(), NextProtos: o.protos(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate() },
	}
	if o.Verify != nil {
		c.VerifyConnection = func(state tls.ConnectionState) error { return o.Verify(state.PeerCertificates[0]) }
	}
	return c
}

// Dialer opens connections; net.Dialer.DialContext is one.
type Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// DialTLS makes a function for http.Transport.DialTLSContext (set
// ForceAttemptHTTP2 as well) whose every connection is made with the CAs and
// the certificate of its time. The result is a *tls.Conn. A connection is closed
// before the certificate it was made with expires: the peer would refuse what
// comes over it.
func DialTLS(s CertSource, o TLSOptions, dial Dialer) Dialer {
	if dial == nil {
		dial = (&net.Dialer{Timeout: handshakeTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		cert, err := s.Certificate()
		if err != nil {
			return nil, fmt.Errorf("certificate for a connection to %s: %w", addr, err)
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		config := ClientTLS(s, o)
		config.ServerName = host
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		raw = endsWith(raw, cert)
		conn := tls.Client(raw, config)
		if _, bounded := ctx.Deadline(); !bounded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, handshakeTimeout)
			defer cancel()
		}
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return conn, nil
	}
}

// mortal is a connection that is closed at a certain time.
type mortal struct {
	net.Conn
	end *time.Timer
}

// endsWith closes c when nine tenths of the certificate's life are over.
func endsWith(c net.Conn, cert *tls.Certificate) net.Conn {
	if cert.Leaf == nil {
		return c
	}
	margin := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore) / 10
	return &mortal{c, time.AfterFunc(time.Until(cert.Leaf.NotAfter.Add(-margin)), func() { c.Close() })}
}

// NetConn is the connection below.
func (m *mortal) NetConn() net.Conn { return m.Conn }

func (m *mortal) Close() error {
	m.end.Stop()
	return m.Conn.Close()
}

// CommonName is a TLSOptions.Verify that lets only holders of one of the names
// pass.
func CommonName(names ...string) func(*x509.Certificate) error {
	return func(c *x509.Certificate) error {
		if !slices.Contains(names, c.Subject.CommonName) {
			return fmt.Errorf("the peer is %q, not %q", c.Subject.CommonName, names)
		}
		return nil
	}
}
