package main

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// TestSameCluster: the flags of the join may stay where they are, also when the
// CA that the token names has been replaced; a token of another cluster is
// refused.
func TestSameCluster(t *testing.T) {
	t.Parallel()
	first, second := []byte("the first CA"), []byte("the second CA")
	bundle := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	hash := func(der []byte) []byte { h := sha256.Sum256(der); return h[:] }
	token := &membership.Token{CA: sha256.Sum256(first)}
	for _, c := range []struct {
		what   string
		token  *membership.Token
		bundle []byte
		known  *membership.Cluster
		ok     bool
	}{
		{"no token", nil, bundle(second), nil, true},
		{"its CA", token, bundle(first), nil, true},
		{"a new CA since the join", token, bundle(second), &membership.Cluster{JoinedCA: hash(first)}, true},
		{"another cluster", token, bundle(second), &membership.Cluster{JoinedCA: hash(second)}, false},
		{"it is not known how the host joined", token, bundle(second), &membership.Cluster{}, false},
	} {
		err := joinOptions{host: "h", token: c.token}.sameCluster(c.bundle, c.known, "/data")
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "leave --token out") {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// A server that takes the request and never answers is asked again.
func TestAServerThatHangs(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer s.Close()
	defer close(hang)
	j := joinOptions{host: strings.TrimPrefix(s.URL, "https://"), token: &membership.Token{}}
	began := time.Now()
	_, err := j.askOnce(t.Context(), membership.JoinRequest{}, 100*time.Millisecond)
	var refused *membership.Refusal
	if err == nil || errors.As(err, &refused) || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// A host with no address but its own loopback joins nobody else.
func TestJoinFromLoopback(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // who asks is not answered
	for host, refused := range map[string]bool{"10.0.0.1": true, "first:6443": true, "https://first": true,
		"localhost": false, "127.0.0.1:6443": false, "[::1]:6443": false, "::1": false, "https://127.0.0.1:6443/": false} {
		j := joinOptions{host: host, token: &membership.Token{}}
		_, err := j.ask(ctx, membership.JoinRequest{Address: "127.0.0.1"}, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), "others cannot reach this host by 127.0.0.1") != refused {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// What a data directory holds decides whether --join is followed, refused or of no
// effect.
func TestJoinWithADataDirectory(t *testing.T) {
	t.Parallel()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("a CA")})
	server := membership.Server{Name: "a", ID: "id", Address: netip.MustParseAddr("10.0.0.1"), APIPort: 6443}
	for _, c := range []struct {
		what      string
		pki, raft bool
		known     *membership.Cluster
		join      string
		says      string // by an error, or in the log
		failed    bool
	}{
		{"new", false, false, nil, "", "", false},
		{"new, joins", false, false, nil, "b", "--join needs --token", true},
		{"a member", true, true, &membership.Cluster{ClusterID: "c", Servers: []membership.Server{server}}, "", "", false},
		{"a member, joins", true, true, &membership.Cluster{ClusterID: "c", Servers: []membership.Server{server}}, "b", "--join has no effect", false},
		{"a restored snapshot, joins", true, true, nil, "b", "--join has no effect", false},
		{"keys for a new cluster", true, false, nil, "", "", false},
		{"keys for a new cluster, joins", true, false, nil, "b", "holds keys already", true},
		{"an interrupted join", false, false, &membership.Cluster{ClusterID: "c"}, "", "join was interrupted", true},
	} {
		dir := t.TempDir()
		for path, b := range map[string][]byte{filepath.Join("pki", "ca.crt"): ca, filepath.Join("raft", "raft.db"): {}} {
			if strings.HasPrefix(path, "pki") && !c.pki || strings.HasPrefix(path, "raft") && !c.raft {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.known != nil {
			if err := membership.SaveCluster(dir, c.known); err != nil {
				t.Fatal(err)
			}
		}
		var log strings.Builder
		o := &serverOptions{hostOptions: hostOptions{name: "a", dataDir: dir, join: joinOptions{host: c.join}, logger: slog.New(slog.NewTextHandler(&log, nil))}}
		err := joinServer(t.Context(), o)
		said := log.String()
		if err != nil {
			said += err.Error()
		}
		if (err != nil) != c.failed || !strings.Contains(said, c.says) || c.says == "" && said != "" {
			t.Errorf("%s: %v, said %q", c.what, err, said)
		}
	}
}
