package membership

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
)

// parseCerts reads all certificates of a PEM text.
func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return out, nil
}

func poolOf(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// generationBlock follows a certificate in the same PEM text and says under
// which generation of the trust it was issued.
const generationBlock = "SKIFF TRUST GENERATION"

func withGeneration(certPEM []byte, generation uint64) []byte {
	return append(certPEM, pem.EncodeToMemory(&pem.Block{Type: generationBlock, Bytes: strconv.AppendUint(nil, generation, 10)})...)
}

// generationOf is 0 where nothing is said.
func generationOf(certPEM []byte) uint64 {
	for {
		var block *pem.Block
		if block, certPEM = pem.Decode(certPEM); block == nil {
			return 0
		}
		if block.Type == generationBlock {
			n, err := strconv.ParseUint(string(block.Bytes), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
}
