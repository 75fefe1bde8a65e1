package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/cluster/seal"
)

func TestSignCSR(t *testing.T) {
	p := mustOpen(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	out, err := p.SignCSR(csr, Request{CommonName: "system:node:a", Organization: []string{"system:nodes"}, DNSNames: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ParseCerts(out)
	if err != nil || certs[0].Subject.CommonName != "system:node:a" || !key.PublicKey.Equal(certs[0].PublicKey) {
		t.Errorf("%v, %v", certs, err)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: p.Pool(), DNSName: "a"}); err != nil {
		t.Error(err)
	}
	der[len(der)-10] ^= 1
	for _, bad := range [][]byte{nil, []byte("x"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})} {
		if _, err := p.SignCSR(bad, Request{CommonName: "x"}); err == nil {
			t.Errorf("signed %q", bad)
		}
	}
}

func TestPassphrase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := Open(dir) // plain first
	if err != nil {
		t.Fatal(err)
	}
	secret, err := OpenProtected(dir, []byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	if secret.ClusterKey().ID() != p.ClusterKey().ID() || !bytes.Equal(secret.Bundle(), p.Bundle()) {
		t.Error("other keys")
	}
	for _, name := range []string{CAKeyFile, SAKeyFile, seal.KeyFile} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Contains(b, []byte("SKIFF SEALED")) {
			t.Errorf("%s is not sealed: %q, %v", name, b, err)
		}
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "--passphrase-file") {
		t.Errorf("without the passphrase: %v", err)
	}
	if _, err := OpenProtected(dir, []byte("wrong")); err == nil || !strings.Contains(err.Error(), "does not open") {
		t.Errorf("with a wrong one: %v", err)
	}
	again, err := OpenProtected(dir, []byte("pass"))
	if err != nil || !again.ServiceAccountKey().Equal(p.ServiceAccountKey()) {
		t.Fatalf("%v", err)
	}
	// What is written later is sealed as well.
	fresh, err := again.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	set(t, again, Keys{CAs: []CA{fresh}, SAKey: again.Keys().SAKey})
	if b, _ := os.ReadFile(filepath.Join(dir, CAKeyFile)); !bytes.Contains(b, []byte(sealedFile)) {
		t.Error("a new CA key is plain")
	}
	if err := os.Remove(filepath.Join(dir, seal.KeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenProtected(dir, []byte("pass")); err == nil || !strings.Contains(err.Error(), "cluster.key, the key") {
		t.Errorf("without the cluster key: %v", err)
	}
}

func TestChangePassphrase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ current, next, want string }{
		{"", "one", ""}, {"", "two", "--passphrase-file"}, {"x", "two", "does not open"}, {"one", "two", ""}, {"two", "", ""}, {"", "", ""},
	} {
		bytesOf := func(s string) []byte {
			if s == "" {
				return nil
			}
			return []byte(s)
		}
		err := ChangePassphrase(dir, bytesOf(c.current), bytesOf(c.next))
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q to %q: %v", c.current, c.next, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		q, err := OpenProtected(dir, bytesOf(c.next))
		if err != nil || !bytes.Equal(q.Keys().CAs[0].Key, p.Keys().CAs[0].Key) || q.ClusterKey().ID() != p.ClusterKey().ID() {
			t.Errorf("%q to %q: other keys, %v", c.current, c.next, err)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, CAKeyFile)); isSealed(b) != (c.next != "") {
			t.Errorf("%q to %q: ca.key sealed %v", c.current, c.next, isSealed(b))
		}
	}
	if err := ChangePassphrase(t.TempDir(), nil, nil); err == nil || !strings.Contains(err.Error(), "holds no keys") {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestPassphraseUnderARunningServer: what it writes afterwards is sealed too, and
// opens with the passphrase.
func TestPassphraseUnderARunningServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ChangePassphrase(dir, nil, []byte("pass")); err != nil {
		t.Fatal(err)
	}
	fresh, err := p.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	set(t, p, Keys{CAs: []CA{fresh}, SAKey: p.Keys().SAKey})
	if b, err := os.ReadFile(filepath.Join(dir, CAKeyFile)); err != nil || !isSealed(b) {
		t.Errorf("the key of the new CA is readable: %v", err)
	}
	if q, err := OpenProtected(dir, []byte("pass")); err != nil || !bytes.Equal(q.Keys().CAs[0].Key, fresh.Key) {
		t.Errorf("not the new CA: %v", err)
	}
}

func TestInstall(t *testing.T) {
	p := mustOpen(t)
	dir := filepath.Join(t.TempDir(), "pki")
	if err := Install(dir, p.Files(), []byte("pass")); err != nil {
		t.Fatal(err)
	}
	q, err := OpenProtected(dir, []byte("pass"))
	if err != nil || !bytes.Equal(q.Bundle(), p.Bundle()) || q.ClusterKey().ID() != p.ClusterKey().ID() {
		t.Errorf("%v", err)
	}
	if err := Install(dir, p.Files(), nil); err == nil {
		t.Error("installed over what was there")
	}
	for _, name := range []string{CACertFile, CAKeyFile, SAKeyFile, seal.KeyFile} {
		f := p.Files()
		delete(f, name)
		if err := Install(filepath.Join(t.TempDir(), "pki"), f, nil); err == nil {
			t.Errorf("installed without %s", name)
		}
	}
}

func TestLostClusterKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, seal.KeyFile)
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := seal.NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func() error{
		", is missing: put it back":   func() error { return os.Remove(path) },
		"but that of this cluster is": func() error { return seal.WriteKey(path, other) },
		"no cluster key, or only a":   func() error { return os.WriteFile(path, kept[:50], 0o600) },
		"mode 0640":                   func() error { return os.Chmod(path, 0o640) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want %q", err, want)
		}
		os.Remove(path)
		if err := os.WriteFile(path, kept, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A version before had neither.
	for _, name := range []string{seal.KeyFile, keyIDFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if q, err := Open(dir); err != nil || q.ClusterKey().ID() != p.ClusterKey().ID() {
		t.Errorf("the key that was made is not kept: %v", err)
	}
}
