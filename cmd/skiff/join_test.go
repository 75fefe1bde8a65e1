package main

import (
	"crypto/sha256"
	"encoding/pem"
	"errors"
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
