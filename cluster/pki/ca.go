package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"time"
)

// caLife is long on purpose: nobody has to renew a CA by hand.
const caLife = 30 * 365 * 24 * time.Hour

// NewCA makes another authority. It is signed by itself, and by the present one
// as well (CA.Cross): whoever knows only the present one still gets to trust
// what the new one signs.
func (p *PKI) NewCA() (CA, error) {
	m := p.now.Load()
	cert, key, err := newCA(p.clock())
	if err != nil {
		return CA{}, err
	}
	crossed := *cert
	crossed.AuthorityKeyId = m.signer.SubjectKeyId
	if crossed.SerialNumber, err = newSerial(); err != nil {
		return CA{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &crossed, m.signer, key.Public(), m.signerKey)
	if err != nil {
		return CA{}, fmt.Errorf("sign the new CA with the present one: %w", err)
	}
	keyPEM, err := encodeKey(key)
	return CA{Cert: encodeCert(cert.Raw), Key: keyPEM, Cross: encodeCert(der)}, err
}

func newCA(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The name is its own, so that two CAs are never taken for one.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("skiff-ca@%d-%x", now.Unix(), serial.Bytes()[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// createFiles makes the keys of a new cluster.
func createFiles(now time.Time) (map[string][]byte, error) {
	cert, key, err := newCA(now)
	if err != nil {
		return nil, err
	}
	caKey, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate service account key: %w", err)
	}
	saKey, err := encodeKey(sa)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{CACertFile: encodeCert(cert.Raw), CAKeyFile: caKey, SAKeyFile: saKey}, nil
}

// parse makes sense of plain files. Of several CA certificates the one that
// belongs to the key signs.
func parse(dir string, files map[string][]byte) (*material, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	cas, err := ParseCAs(files[CACertFile])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at(CACertFile), err)
	}
	m := &material{cas: cas, pool: x509.NewCertPool(), files: files, crossPEM: files[CrossFile]}
	if m.signerKey, err = decodeKey(files[CAKeyFile]); err != nil {
		return nil, fmt.Errorf("parse %s: %w", at(CAKeyFile), err)
	}
	if m.saKey, err = decodeKey(files[SAKeyFile]); err != nil {
		return nil, fmt.Errorf("parse %s: %w", at(SAKeyFile), err)
	}
	for _, c := range cas {
		m.pool.AddCert(c)
		if belongs(c, m.signerKey) {
			m.signer = c
		}
	}
	if m.signer == nil {
		return nil, fmt.Errorf("%s does not belong to %s", at(CAKeyFile), at(CACertFile))
	}
	m.bundle = encodeCert(m.signer.Raw)
	for _, c := range cas {
		if c != m.signer {
			m.bundle = append(m.bundle, encodeCert(c.Raw)...)
		}
	}
	if len(m.crossPEM) == 0 {
		return m, nil
	}
	cross, err := ParseCerts(m.crossPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at(CrossFile), err)
	}
	if err := intact(m.crossPEM, cross); err != nil {
		return nil, fmt.Errorf("%s: %w", at(CrossFile), err)
	}
	if len(cross) != 1 || !belongs(cross[0], m.signerKey) {
		return nil, fmt.Errorf("%s does not belong to %s", at(CrossFile), at(CAKeyFile))
	}
	return m, nil
}

// ParseCAs reads a file of CA certificates that this package has made: nothing else
// may be in it, and each must be signed by itself, which nobody else looks at.
func ParseCAs(b []byte) ([]*x509.Certificate, error) {
	cas, err := ParseCerts(b)
	if err != nil {
		return nil, err
	}
	for _, c := range cas {
		if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", c.Subject.CommonName, err)
		}
	}
	return cas, intact(b, cas)
}

// intact refuses what holds more than the certificates that were read from it: a
// damaged one is passed over as if it were a comment.
func intact(b []byte, read []*x509.Certificate) error {
	var again []byte
	for _, c := range read {
		again = append(again, encodeCert(c.Raw)...)
	}
	if !bytes.Equal(bytes.TrimSpace(b), bytes.TrimSpace(again)) {
		return errors.New("it holds something besides certificates")
	}
	return nil
}

func belongs(c *x509.Certificate, key *ecdsa.PrivateKey) bool {
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && pub.Equal(key.Public())
}

// ParseCerts reads PEM certificates, at least one and nothing else.
func ParseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block %s, want certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		out, b = append(out, c), rest
	}
	if len(out) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return out, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
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
	// The file has the public key too; the parser does not compare.
	if again, err := x509.MarshalPKCS8PrivateKey(key); err != nil || !bytes.Equal(again, block.Bytes) {
		return nil, errors.New("private and public part do not belong together")
	}
	return key, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n.SetBit(n, 126, 1), nil // always of one length
}
