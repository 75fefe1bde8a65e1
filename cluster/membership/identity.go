package membership

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// Files of an Identity in its directory. The key of a renewal is beside them
// until its certificate has come.
const (
	KeyFile    = "node.key"
	newKeyFile = "node.key.next"
	CertFile   = "node.crt"
	CAFile     = "ca.crt"
)

// IdentityConfig is what an Identity needs.
type IdentityConfig struct {
	Dir    string // <data-dir>/agent; made if it is missing
	Name   string // of the node; default, of one that has joined: that of its certificate
	NodeID string
	// Address under which others reach the node; when it changes, the
	// certificate is replaced.
	Address func() string
	// Dial connects to the API port of a server that is alive, whichever; the
	// address it is called with means nothing. Run, Refresh and Leave need it.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// OnConfig is called, by one goroutine at a time, with what a server says
	// when it was asked (see Refresh). May be nil.
	OnConfig func(*NodeConfig)
	// Program is the running one; servers say (NodeConfig.Unfit) whether it works
	// in their cluster. The zero value is not asked about.
	Program Program
	// Now replaces time.Now, for tests.
	Now    func() time.Time
	Logger *slog.Logger
}

// Identity is key and certificate of an agent, and the CA certificates that it
// trusts, kept on disk. Run renews the certificate. Safe for concurrent use.
type Identity struct {
	c    IdentityConfig
	wake chan struct{}
	busy sync.Mutex // held while the certificate is replaced

	mu    sync.Mutex
	key   *ecdsa.PrivateKey
	cert  *tls.Certificate // nil before the node has joined
	pem   []byte           // of cert
	ca    []byte
	roots *x509.CertPool
}

// OpenIdentity reads the directory, or begins a new identity in it: then the
// node has not joined, and CSR, membership.Join and Install follow.
func OpenIdentity(c IdentityConfig) (*Identity, error) {
	if c.Dir == "" || c.NodeID == "" || c.Address == nil || c.Logger == nil {
		return nil, errors.New("identity: Dir, NodeID, Address and Logger are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("identity of this node: %w", err)
	}
	i := &Identity{c: c, wake: make(chan struct{}, 1)}
	if err := i.load(); err != nil {
		return nil, fmt.Errorf("identity of this node: %w", err)
	}
	return i, nil
}

func (i *Identity) path(name string) string { return filepath.Join(i.c.Dir, name) }

func (i *Identity) load() error {
	key, err := i.readKey(KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(i.path(CertFile)); err == nil {
			return fmt.Errorf("%s is missing beside %s: put it back, or run skiff reset --delete-data and join again", i.path(KeyFile), CertFile)
		}
		if key, err = newKey(); err == nil {
			err = i.writeKey(KeyFile, key)
		}
	}
	if err != nil {
		return err
	}
	i.key = key
	certPEM, err := os.ReadFile(i.path(CertFile))
	if errors.Is(err, fs.ErrNotExist) {
		if i.c.Name == "" {
			return errors.New("it has not joined, and Name is missing")
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: put it back, or %s", err, joinAgain)
	}
	ca, err := os.ReadFile(i.path(CAFile))
	if err != nil {
		return fmt.Errorf("%w: put it back from %s/%s of a server, or %s", err, "pki", pki.CACertFile, joinAgain)
	}
	roots, err := pki.ParseCAs(ca)
	if err != nil {
		return fmt.Errorf("%s: %w: put it back from %s/%s of a server, or %s", i.path(CAFile), err, "pki", pki.CACertFile, joinAgain)
	}
	cert, err := pair(certPEM, key)
	if errors.Is(err, errOtherKey) {
		// The process ended between the two writes of a renewal.
		next, e := i.readKey(newKeyFile)
		if e != nil {
			return fmt.Errorf("%s does not belong to %s: run skiff reset --delete-data and join again", CertFile, i.path(KeyFile))
		}
		if cert, err = pair(certPEM, next); err == nil {
			if err = os.Rename(i.path(newKeyFile), i.path(KeyFile)); err == nil {
				i.key = next
			}
		}
	}
	if err == nil {
		err = wholeChain(certPEM, roots)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: put it back, or %s", i.path(CertFile), err, joinAgain)
	}
	name, id, err := nodeOf(cert.Leaf)
	if err == nil && id != i.c.NodeID {
		return fmt.Errorf("node-id of this host is %s, and %s is that of %s: put that ID back, or %s", i.c.NodeID, i.path(CertFile), id, joinAgain)
	}
	if i.c.Name == "" {
		i.c.Name = name
	}
	if err != nil || name != i.c.Name {
		return fmt.Errorf("this host joined as %s, and is started as %s: start it with --name %s, or run skiff reset --delete-data and join again", name, i.c.Name, name)
	}
	i.cert, i.pem, i.ca, i.roots = cert, certPEM, ca, poolOf(roots...)
	return nil
}

// joinAgain is what an agent can always do.
const joinAgain = "run skiff reset --delete-data and join again"

// wholeChain refuses a file that holds something besides PEM blocks, or a
// certificate that the CAs have not signed.
func wholeChain(certPEM []byte, cas []*x509.Certificate) error {
	var again []byte
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		again = append(again, pem.EncodeToMemory(block)...)
		if block.Type == generationBlock {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if err := intactBy(c, cas); err != nil {
			return err
		}
	}
	if !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(certPEM)) {
		return errors.New("it holds something besides certificates")
	}
	return nil
}

// intactBy refuses a certificate that one of the CAs did not sign although it says
// so. One of a CA that is not known is of one that is no longer trusted: it is
// replaced when a server answers.
func intactBy(c *x509.Certificate, cas []*x509.Certificate) error {
	for _, ca := range cas {
		if bytes.Equal(ca.SubjectKeyId, c.AuthorityKeyId) && bytes.Equal(ca.RawSubject, c.RawIssuer) {
			return ca.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
		}
	}
	return nil
}

// Joined tells whether the node has a certificate, valid or not.
func (i *Identity) Joined() bool { return i.certificate() != nil }

func (i *Identity) certificate() *tls.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert
}

// CSR is the certificate request of a node that joins.
func (i *Identity) CSR() ([]byte, error) {
	i.mu.Lock()
	key := i.key
	i.mu.Unlock()
	return csrFor(i.c.Name, key)
}

func csrFor(name string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: nodeUserPrefix + name, Organization: []string{nodesGroup}}}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Install keeps what the cluster answered to the join.
func (i *Identity) Install(certPEM, ca []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.install(certPEM, ca, i.key)
}

// install writes the certificate of key, and the CA before it. i.mu is held.
func (i *Identity) install(certPEM, ca []byte, key *ecdsa.PrivateKey) error {
	cert, err := pair(certPEM, key)
	if err != nil {
		return fmt.Errorf("certificate from the cluster: %w", err)
	}
	if name, _, err := nodeOf(cert.Leaf); err != nil || name != i.c.Name {
		return fmt.Errorf("certificate from the cluster is that of %s", cert.Leaf.Subject.CommonName)
	}
	if err := i.setCA(ca); err != nil {
		return err
	}
	if err := durable.Replace(i.path(CertFile), certPEM, 0o600); err != nil {
		return err
	}
	if key != i.key { // load knows what to do if the process ends here
		if err := os.Rename(i.path(newKeyFile), i.path(KeyFile)); err != nil {
			return fmt.Errorf("key of the certificate: %w", err)
		}
		i.key = key
	}
	i.cert, i.pem = cert, certPEM
	return nil
}

// SetCA replaces the CA certificates (PEM) that are trusted.
func (i *Identity) SetCA(ca []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.setCA(ca)
}

func (i *Identity) setCA(ca []byte) error {
	if string(ca) == string(i.ca) {
		return nil
	}
	certs, err := parseCerts(ca)
	if err != nil {
		return fmt.Errorf("CA of the cluster: %w", err)
	}
	if err := durable.Replace(i.path(CAFile), ca, 0o600); err != nil {
		return err
	}
	i.ca, i.roots = ca, poolOf(certs...)
	return nil
}

// CA gives the CA certificates that are trusted, as PEM.
func (i *Identity) CA() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ca
}

// Pool gives the CA certificates that are trusted now.
func (i *Identity) Pool() *x509.CertPool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.roots == nil {
		return x509.NewCertPool()
	}
	return i.roots
}

// Leaf is the current certificate, nil before the node has joined.
func (i *Identity) Leaf() *x509.Certificate {
	if c := i.certificate(); c != nil {
		return c.Leaf
	}
	return nil
}

// PEM gives the current certificate and key.
func (i *Identity) PEM() (certPEM, keyPEM []byte, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	keyPEM, err = encodeKey(i.key)
	return i.pem, keyPEM, err
}

// ClientTLS dials API servers, by whatever name or address, as this node. It
// follows renewals.
func (i *Identity) ClientTLS() *tls.Config {
	c := serverTLS(i.Pool)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := i.certificate()
		if cert == nil || i.c.Now().After(cert.Leaf.NotAfter) {
			return &tls.Certificate{}, nil // shown an expired one, the server would end the handshake
		}
		return cert, nil
	}
	return c
}

// Certificate and Pool make an Identity a pki.CertSource.
func (i *Identity) Certificate() (*tls.Certificate, error) {
	if c := i.certificate(); c != nil {
		return c, nil
	}
	return nil, errors.New("this node has not joined yet")
}

// ServingTLS serves as this node and verifies the certificates that callers
// show, without requiring them. It follows renewals.
func (i *Identity) ServingTLS() *tls.Config { return pki.ServerTLS(i, pki.TLSOptions{}) }

func newKey() (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return k, nil
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (i *Identity) writeKey(name string, k *ecdsa.PrivateKey) error {
	b, err := encodeKey(k)
	if err != nil {
		return err
	}
	return durable.Replace(i.path(name), b, 0o600)
}

func (i *Identity) readKey(name string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(i.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: put it back, or %s", err, joinAgain)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key: put it back, or %s", i.path(name), joinAgain)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: put it back, or %s", i.path(name), err, joinAgain)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is %T, want ECDSA", i.path(name), k)
	}
	if again, err := encodeKey(key); err != nil || !bytes.Equal(again, pem.EncodeToMemory(block)) {
		return nil, fmt.Errorf("%s: private and public part do not belong together: put it back, or %s", i.path(name), joinAgain)
	}
	return key, nil
}

var errOtherKey = errors.New("the certificate is of another key")

// pair joins certificate and key.
func pair(certPEM []byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, err
	}
	pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(key.Public()) {
		return nil, errOtherKey
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

// signRenewal proves that the holder of the old key asks.
func signRenewal(r *RenewRequest, key *ecdsa.PrivateKey) error {
	sum := sha256.Sum256(renewalMessage(r))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign the renewal: %w", err)
	}
	r.Signature = sig
	return nil
}
