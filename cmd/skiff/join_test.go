package main

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
