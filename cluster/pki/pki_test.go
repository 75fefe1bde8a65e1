package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOpenCreatesOnceAndReloads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(a.CACertPEM()) != string(b.CACertPEM()) || !a.ServiceAccountKey().Equal(b.ServiceAccountKey()) {
		t.Error("second Open made other keys")
	}
	for name := range a.Files() {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", name, fi.Mode().Perm())
		}
	}
}

func TestOpenRefusesBrokenDirectories(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		breakIt    func(dir string) error
	}{
		{"missing key", "ca.key is missing", func(d string) error { return os.Remove(filepath.Join(d, CAKeyFile)) }},
		{"garbage certificate", "holds no PEM certificate", func(d string) error {
			return os.WriteFile(filepath.Join(d, CACertFile), []byte("x"), 0o600)
		}},
		{"foreign key", "does not belong to", func(d string) error {
			other := filepath.Join(t.TempDir(), "pki")
			if _, err := Open(other); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, CAKeyFile), filepath.Join(d, CAKeyFile))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			if _, err := Open(dir); err != nil {
				t.Fatal(err)
			}
			if err := tc.breakIt(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Open = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestLeafRenewsAtTwoThirdsOfItsLife(t *testing.T) {
	p, err := Open(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Leaf(Request{CommonName: "x"})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := l.Certificate()
	p.clock = func() time.Time { return time.Now().Add(leafLife / 2) }
	if c, _ := l.Certificate(); c != first {
		t.Error("renewed at half of its life")
	}
	p.clock = func() time.Time { return time.Now().Add(leafLife * 3 / 4) }
	if c, err := l.Certificate(); err != nil || c == first {
		t.Errorf("not renewed at three quarters of its life: %v", err)
	}
}

func TestMutualTLS(t *testing.T) {
	p, err := Open(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := p.Leaf(Request{CommonName: "server", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", MutualTLS(srv, TLSOptions{Protos: []string{"x"}, Verify: CommonName("client")}))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("k"))
			c.Close()
		}
	}()
	dial := func(cfg *tls.Config) error {
		c, err := tls.Dial("tcp", ln.Addr().String(), cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		return err
	}
	cli, err := p.Leaf(Request{CommonName: "client"})
	if err != nil {
		t.Fatal(err)
	}
	if err := dial(MutualTLS(cli, TLSOptions{Protos: []string{"x"}, Verify: CommonName("server")})); err != nil {
		t.Errorf("client of the cluster refused: %v", err)
	}
	if err := dial(&tls.Config{RootCAs: p.Pool()}); err == nil {
		t.Error("client without certificate accepted")
	}
	if err := dial(&tls.Config{RootCAs: x509.NewCertPool()}); err == nil {
		t.Error("server accepted by a client that trusts nobody")
	}
}
