// Package pki is the cluster's certificate authority and its service-account
// signing key, kept as files under <data-dir>/pki and copied into the
// replicated state, so that a snapshot can bring up a bare host.
//
// Leaf certificates are never stored: each process issues what it needs and
// replaces it in place after two thirds of its life (see Leaf), so none can
// expire while the process runs, and a cluster that was off for years starts
// with fresh ones.
//
// Limits: one CA signs clients, servers and members; replacing it with an
// overlap is not built yet.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// Names of the files in the directory, which are also the last part of their
// keys in the replicated state.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
	SAKeyFile  = "sa.key"
)

// caLife is long on purpose: nobody renews a CA by hand.
const caLife = 30 * 365 * 24 * time.Hour

// PKI holds the keys. It is immutable after Open and safe for concurrent use.
type PKI struct {
	caCert *x509.Certificate
	caKey  crypto.Signer
	caPEM  []byte
	saKey  *ecdsa.PrivateKey
	files  map[string][]byte
}

// Open reads the keys from dir, or creates all of them when dir holds none. A
// directory with only some of the files is refused: making new ones would cut
// off every member and client that trusts the old.
func Open(dir string) (*PKI, error) {
	files, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		if files, err = create(); err != nil {
			return nil, err
		}
		if err := writeFiles(dir, files); err != nil {
			return nil, err
		}
	}
	return parse(dir, files)
}

func readFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	var missing []string
	for _, name := range []string{CACertFile, CAKeyFile, SAKeyFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return nil, fmt.Errorf("read cluster keys: %w", err)
		default:
			files[name] = b
		}
	}
	if len(files) > 0 && len(missing) > 0 {
		sort.Strings(missing)
		return nil, fmt.Errorf("%s is missing in %s while other keys of the cluster are there: put it back, or restore a snapshot into a new data directory", missing[0], dir)
	}
	return files, nil
}

func create() (map[string][]byte, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("skiff-ca@%d", now.Unix())},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	caKeyPEM, err := encodeKey(caKey)
	if err != nil {
		return nil, err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate service account key: %w", err)
	}
	saKeyPEM, err := encodeKey(saKey)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		CACertFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		CAKeyFile:  caKeyPEM,
		SAKeyFile:  saKeyPEM,
	}, nil
}

// writeFiles makes dir appear with all files or not at all.
func writeFiles(dir string, files map[string][]byte) error {
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	for name, b := range files {
		if err := writeSynced(filepath.Join(tmp, name), b); err != nil {
			return fmt.Errorf("write cluster keys: %w", err)
		}
	}
	// An empty directory may be left from an earlier attempt.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

func parse(dir string, files map[string][]byte) (*PKI, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	block, _ := pem.Decode(files[CACertFile])
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no PEM certificate", at(CACertFile))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", at(CACertFile), err)
	}
	caKey, err := decodeKey(files[CAKeyFile])
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", at(CAKeyFile), err)
	}
	saKey, err := decodeKey(files[SAKeyFile])
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", at(SAKeyFile), err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(caKey.Public()) {
		return nil, fmt.Errorf("%s does not belong to %s", at(CAKeyFile), at(CACertFile))
	}
	return &PKI{caCert: cert, caKey: caKey, caPEM: files[CACertFile], saKey: saKey, files: files}, nil
}

// CACertPEM is the certificate that clients verify the cluster with.
func (p *PKI) CACertPEM() []byte { return bytes.Clone(p.caPEM) }

// Pool has the CA as its only root.
func (p *PKI) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.caCert)
	return pool
}

// ServiceAccountKey signs and verifies service-account tokens (ES256).
func (p *PKI) ServiceAccountKey() *ecdsa.PrivateKey { return p.saKey }

// Files gives name -> PEM of everything that a new member or a restored host
// needs. The values are secrets.
func (p *PKI) Files() map[string][]byte {
	out := make(map[string][]byte, len(p.files))
	for k, v := range p.files {
		out[k] = bytes.Clone(v)
	}
	return out
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is %T, want ECDSA", k)
	}
	return key, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
