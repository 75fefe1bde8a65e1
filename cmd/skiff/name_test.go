package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// A host that is a member keeps its name when its host name changes, and is not
// renamed.
func TestKeepName(t *testing.T) {
	fresh, server, agent := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(server, "node-id"), "two\n")
	known := membership.Cluster{ClusterID: "c"}
	for name, id := range map[string]string{"one": "one", "second": "two"} {
		known.Servers = append(known.Servers, membership.Server{Name: name, ID: id, Address: netip.MustParseAddr("10.0.0.1")})
	}
	if err := membership.SaveCluster(server, &known); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(agent, "node-id"), "three\n")
	if err := membership.SaveCluster(agent, &known); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:worker"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	joining := t.TempDir() // a join that is not complete
	if err := membership.SaveCluster(joining, &known); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(joining, "node-id"), "four\n")
	write(filepath.Join(agent, "agent", membership.CertFile), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	for _, tc := range []struct {
		dir, name string
		given     bool
		want      string // "": refused
	}{
		{fresh, "host", false, "host"},
		{joining, "host", true, "host"},
		{server, "host", false, "second"},
		{server, "second", true, "second"},
		{server, "host", true, ""},
		{agent, "host", false, "worker"},
		{agent, "worker", true, "worker"},
		{agent, "host", true, ""},
	} {
		o := hostOptions{dataDir: tc.dir, name: tc.name, named: tc.given, logger: slog.New(slog.DiscardHandler)}
		err := o.keepName()
		switch {
		case tc.want == "" && (err == nil || !strings.Contains(err.Error(), "--name host: this host is a member of its cluster as ")):
			t.Errorf("%+v: %v", tc, err)
		case tc.want != "" && (err != nil || o.name != tc.want):
			t.Errorf("%+v: name %s, %v", tc, o.name, err)
		}
	}
	for dir, want := range map[string]string{fresh: "", joining: "", server: "second", agent: "worker"} {
		if got := (&reset{dataDir: dir}).member(); got != want {
			t.Errorf("reset takes %s for member %q, want %q", dir, got, want)
		}
	}
	write(filepath.Join(agent, "agent", membership.CertFile), "x")
	if _, err := nameInCluster(agent); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("a broken certificate: %v", err)
	}
}
