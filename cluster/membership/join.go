package membership

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// maxAnswer bounds what a server may answer.
const maxAnswer = 4 << 20

// Join asks the server at hostPort (HOST or HOST:PORT) to admit this host, once.
// An error that is a *Refusal is final; after any other one may try again. The
// token is sent only to a server whose certificate is of the CA that it names.
func Join(ctx context.Context, hostPort string, t Token, r JoinRequest) (*Answer, error) {
	addr, err := serverAddress(hostPort)
	if err != nil {
		return nil, err
	}
	ca, err := pinnedCA(ctx, addr, t)
	if err != nil {
		return nil, err
	}
	r.Time = time.Now().UTC()
	if r.MaxLevel == 0 {
		r.MinLevel, r.MaxLevel = fsm.MinLevel, fsm.MaxLevel
	}
	trusted := poolOf(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: serverTLS(func() *x509.CertPool { return trusted }), DisableKeepAlives: true, TLSHandshakeTimeout: dialTimeout}}
	a, err := call[Answer](ctx, client, http.MethodPost, "https://"+addr+JoinPath, r, func(h http.Header) { h.Set("Authorization", bearerPrefix+t.bearer()) })
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted), errors.Is(err, errNoServer):
		return nil, refuse(0, "the server at %s does not use the CA that the token names (%v): if the cluster has a new CA, make a new token with skiff token create", addr, err)
	case err != nil:
		return nil, err
	}
	if err := a.check(&r, ca); err != nil {
		return nil, fmt.Errorf("the answer of the server at %s: %w", addr, err)
	}
	return a, nil
}

// check refuses an answer that would not make a member.
func (a *Answer) check(r *JoinRequest, ca *x509.Certificate) error {
	trusted, err := parseCerts(a.CA)
	switch {
	case err != nil:
		return fmt.Errorf("its CA: %w", err)
	case !slices.ContainsFunc(trusted, ca.Equal):
		return errors.New("its CA is another than that of the token")
	case len(a.Servers) == 0 || a.ClusterID == "":
		return errors.New("it names no cluster or no servers")
	case r.Role.Votes() && len(a.PKI) == 0:
		return errors.New("it has no keys for a server")
	case !r.Role.Votes() && len(a.Cert) == 0:
		return errors.New("it has no certificate")
	}
	return nil
}

// serverAddress completes HOST[:PORT].
func serverAddress(s string) (string, error) {
	if u, err := url.Parse(s); err == nil && u.Scheme == "https" && u.Host != "" {
		s = u.Host
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(DefaultPort)
		if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
			host = host[1 : len(host)-1]
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 || bytes.ContainsAny([]byte(host), "/ @") {
		return "", refuse(0, "%q is no server: want HOST or HOST:PORT", s)
	}
	return net.JoinHostPort(host, port), nil
}

const dialTimeout = 10 * time.Second

// pinnedCA asks a server that is not trusted yet for its CA certificates and
// gives the one that the token names. It also compares the clocks: with a wrong
// one no certificate can be verified.
func pinnedCA(ctx context.Context, addr string, t Token) (*x509.Certificate, error) {
	var date time.Time
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSHandshakeTimeout: dialTimeout,
		// Nothing is sent, and what comes is verified by its hash.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}}}
	a, err := call[caAnswer](ctx, client, http.MethodGet, "https://"+addr+CAPath, nil, nil, func(h http.Header) { date, _ = http.ParseTime(h.Get("Date")) })
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(a.CA)
	if err != nil {
		return nil, fmt.Errorf("CA of the server at %s: %w", addr, err)
	}
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return sha256.Sum256(c.Raw) == t.CA })
	if i < 0 {
		return nil, refuse(0, "the token is of another cluster than the server at %s (or the cluster has a new CA): make one there with skiff token create", addr)
	}
	if !date.IsZero() {
		if err := clockError(time.Now(), date, "that of the server at "+addr); err != nil {
			return nil, wrongClock(err, date, certs[i])
		}
	}
	return certs[i], nil
}

// wrongClock adds which clock is wrong, if the age of the CA tells.
func wrongClock(err error, server time.Time, ca *x509.Certificate) error {
	switch made := ca.NotBefore; {
	case time.Now().Before(made):
		return refuse(0, "%v; this host's is wrong: the cluster was made at %s", err, made.UTC().Format(time.RFC3339))
	case server.Before(made):
		return refuse(0, "%v; the server's is wrong: the cluster was made at %s", err, made.UTC().Format(time.RFC3339))
	}
	return err
}

// errNoServer says that the peer is a member, but no server.
var errNoServer = errors.New("the peer is no server of the cluster")

// serverTLS trusts servers whose certificate is of a CA in roots, by whatever
// name or address they are reached: a node's certificate is not enough.
func serverTLS(roots func() *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // by name; VerifyConnection does the rest
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errNoServer
			}
			o := x509.VerifyOptions{Roots: roots(), Intermediates: poolOf(s.PeerCertificates[1:]...), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
			if _, err := s.PeerCertificates[0].Verify(o); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
			}
			if s.PeerCertificates[0].Subject.CommonName != apiServerName {
				return errNoServer
			}
			return nil
		},
	}
}

// call sends in as JSON, if it is not nil, and decodes the answer. A refusal of
// the server becomes a *Refusal.
func call[T any](ctx context.Context, client *http.Client, method, target string, in any, header func(http.Header), seen ...func(http.Header)) (*T, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if header != nil {
		header(req.Header)
	}
	resp, err := client.Do(req)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // the rest is said here
		}
		return nil, fmt.Errorf("the server at %s does not answer: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	for _, f := range seen {
		f(resp.Header)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of the server at %s: %w", req.URL.Host, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, answerError(req.URL.Host, resp.StatusCode, b)
	}
	v, err := decodeJSON[T](b)
	if err != nil {
		return nil, fmt.Errorf("%s is no skiff server: its answer is no JSON (%w)", req.URL.Host, err)
	}
	return v, nil
}

// answerError reads an answer that is no success. What may be gone in a moment
// is no Refusal.
func answerError(host string, status int, b []byte) error {
	f, err := decodeJSON[failure](b)
	if err != nil || f.Message == "" {
		if status == http.StatusNotFound || status == http.StatusForbidden || status == http.StatusUnauthorized {
			return refuse(status, "%s is no skiff server, or an older one: it answers %d", host, status)
		}
		return fmt.Errorf("the server at %s answers %d %s", host, status, http.StatusText(status))
	}
	if status >= 500 {
		return fmt.Errorf("the server at %s: %s", host, f.Message)
	}
	return &Refusal{Status: status, Message: f.Message, Removed: f.Removed}
}
