package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// remote is a cluster of servers that do nothing but give a snapshot.
type remote struct {
	cert     tls.Certificate
	crt, key string // files, for both sides
	content  []byte
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{servers.ServerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &remote{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, crt: filepath.Join(dir, "crt"), key: filepath.Join(dir, "key")}
	for path, block := range map[string]*pem.Block{r.crt: {Type: "CERTIFICATE", Bytes: der}, r.key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := fsm.New(store.New(store.Config{}))
	cmds := []fsm.Command{{Configuration: &fsm.Configuration{ClusterID: "remote"}}}
	for i := range 200 {
		cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: "/registry/x/" + strings.Repeat("k", i+1), Value: bytes.Repeat([]byte{byte(i)}, 4096)}))
	}
	entry, err := fsm.EncodeEntry(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 3, Term: 1, Data: entry})
	var b bytes.Buffer
	if err := f.Capture().Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	r.content = b.Bytes()
	return r
}

// serve starts a server and gives its address.
func (r *remote) serve(t *testing.T, h func(w http.ResponseWriter, q *http.Request)) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(h))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{r.cert}, ClientAuth: tls.RequireAnyClientCert}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// half sends the first half and cuts the connection.
func (r *remote) half(w http.ResponseWriter, _ *http.Request) {
	w.Write(r.content[:len(r.content)/2])
	panic(http.ErrAbortHandler)
}

func (r *remote) whole(w http.ResponseWriter, _ *http.Request) { w.Write(r.content) }

func TestSaveFromRemoteServers(t *testing.T) {
	r := newRemote(t)
	once := new(atomic.Bool)
	dead := "127.0.0.1:1"
	good := r.serve(t, r.whole)
	for _, c := range []struct {
		name      string
		endpoints []string
		args      []string
		want      string // of the error
	}{
		{"the first is down", []string{dead, good}, nil, ""},
		{"one stops in the middle", []string{r.serve(t, func(w http.ResponseWriter, q *http.Request) {
			if once.CompareAndSwap(false, true) {
				r.half(w, q)
			}
			r.whole(w, q)
		})}, nil, ""},
		{"all stop in the middle", []string{r.serve(t, r.half)}, nil, "the server stopped sending"},
		{"half of it as if it were all", []string{r.serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(r.content[:5000]) })}, nil, "truncated"},
		{"not an administrator", []string{r.serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })}, nil, "not an administrator's"},
		{"an etcd", []string{r.serve(t, func(w http.ResponseWriter, q *http.Request) { http.NotFound(w, q) })}, nil, "no skiff server"},
		{"without a quorum", []string{r.serve(t, func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Query().Get(cluster.SnapshotLocal) != "true" {
				http.Error(w, "no leader", http.StatusServiceUnavailable)
				return
			}
			r.whole(w, q)
		})}, []string{"--without-quorum"}, ""},
		{"all down", []string{dead}, nil, "no server answers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "s")
			args := append([]string{"skiff", "snapshot", "save", path, "-w", "json", "--endpoints", strings.Join(c.endpoints, ","),
				"--cacert", r.crt, "--cert", r.crt, "--key", r.key}, c.args...)
			err := quietly(t, args...)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			entries, _ := os.ReadDir(dir)
			if c.want != "" {
				if len(entries) != 0 {
					t.Errorf("left behind: %v", entries)
				}
				return
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, r.content) || len(entries) != 1 {
				t.Errorf("%d bytes saved, %v, in %v", len(b), err, entries)
			}
		})
	}
}

// quietly runs a command line without its output.
func quietly(t *testing.T, args ...string) error {
	t.Helper()
	app := newApp()
	app.Writer = &bytes.Buffer{}
	return app.RunContext(t.Context(), args)
}

func TestSaveByEnvironment(t *testing.T) {
	r := newRemote(t)
	t.Setenv("ETCDCTL_ENDPOINTS", "https://"+r.serve(t, r.whole))
	t.Setenv("ETCDCTL_CACERT", r.crt)
	t.Setenv("ETCDCTL_CERT", r.crt)
	t.Setenv("ETCDCTL_KEY", r.key)
	dir := t.TempDir()
	if err := quietly(t, "skiff", "snapshot", "save", dir, "--compress"); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Fatalf("saved %v", entries)
	}
	if n, ok := backup.ParseName(entries[0].Name()); !ok || n.Cluster != "remote" || !n.Compressed {
		t.Errorf("saved as %s", entries[0].Name())
	}
	// skiff's own variables win, and what is not verified is refused.
	t.Setenv("SKIFF_ENDPOINTS", "127.0.0.1:1")
	if err := quietly(t, "skiff", "snapshot", "save", filepath.Join(dir, "x")); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("with SKIFF_ENDPOINTS: %v", err)
	}
	err := quietly(t, "skiff", "snapshot", "save", filepath.Join(dir, "x"), "--insecure-skip-tls-verify")
	var exit cli.ExitCoder
	if !errors.As(err, &exit) || exit.ExitCode() != exitUsage || !strings.Contains(err.Error(), "--cacert") {
		t.Errorf("without verifying: %v", err)
	}
}
