package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/cluster/pki"
)

func TestStatusShowsWhatMembersServe(t *testing.T) {
	f := newFleet(t, "a", "b")
	f.advance("a")
	f.install("a", "b")
	leaf, err := f.pkis["b"].Leaf(pki.Request{CommonName: "skiff:server", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", pki.MutualTLS(leaf, pki.TLSOptions{Protos: []string{"skiff-rpc/1"}}))
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
			_ = c.(*tls.Conn).HandshakeContext(context.Background())
			c.Close()
		}
	}()
	f.set("b", func(m *Member) {
		m.Ports = map[string]string{"raft": ln.Addr().String(), "api": "127.0.0.1:1"}
	})
	f.members["gone"] = &Member{Name: "gone", Ports: map[string]string{"node": ln.Addr().String()}}

	server := httptest.NewServer(f.trusts["a"].Handlers()[StatusPath])
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	if len(s.Members) != 3 || len(s.CAs) != 1 || !s.CAs[0].Signs || s.Generation == 0 {
		t.Fatalf("%+v", s)
	}
	b := s.Members[1].Certificates
	if b[0].Purpose != "api" || !strings.Contains(b[0].Problem, "no answer") {
		t.Errorf("closed port: %+v", b[0])
	}
	if b[1].Subject != "skiff:server" || b[1].Problem != "" || b[1].CA != s.CAs[0].Name || !b[1].NotAfter.Equal(leafOf(t, leaf).NotAfter) {
		t.Errorf("served: %+v", b[1])
	}
	if g := s.Members[2]; g.Alive || g.Certificates[0].Problem == "" {
		t.Errorf("gone: %+v", g)
	}
}

func leafOf(t *testing.T, l *pki.Leaf) *x509.Certificate {
	t.Helper()
	c, err := l.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func TestHandlersRefuse(t *testing.T) {
	f := newFleet(t, "a")
	f.advance("a")
	f.install("a")
	for _, c := range []struct {
		method, path, query string
		code                int
	}{
		{"POST", StatusPath, "", 405}, {"GET", RotatePath, "", 405},
		{"POST", RotateCAPath, "?finish=true", 409}, {"POST", RotateCAPath, "?finish=maybe", 400}, {"POST", RotateCAPath, "?force=true", 400},
		{"POST", RotatePath, "", 200}, {"POST", RotateGossipKeyPath, "", 200}, {"POST", RotateGossipKeyPath, "", 409},
	} {
		w := httptest.NewRecorder()
		f.trusts["a"].Handlers()[c.path].ServeHTTP(w, httptest.NewRequest(c.method, c.path+c.query, nil))
		if w.Code != c.code {
			t.Errorf("%s %s%s: %d %s, want %d", c.method, c.path, c.query, w.Code, w.Body, c.code)
		}
	}
}

func TestForeignDocumentIsRefused(t *testing.T) {
	f := newFleet(t, "a")
	f.advance("a")
	other := newFleet(t, "a").pkis["a"]
	if _, err := Recover(f.log.state(), other.ClusterKey()); err == nil || !strings.Contains(err.Error(), "sealed with cluster key") {
		t.Errorf("another cluster's key: %v", err)
	}
	f.pkis["a"] = other
	tr := f.trust("a")
	if err := tr.install(t.Context()); err == nil {
		t.Error("installed")
	}
	if s, err := tr.Status(t.Context()); err == nil {
		t.Errorf("status %+v", s)
	}
	for _, bad := range []string{"", "{}", `{"version":2}`, `{"version":1,"cas":[{"cert":"x"}]}`, `{"version":1,"cas":[{"cert":"x","key":"y"}]}`,
		`{"version":1,"cas":[{"cert":"x","key":"y"}],"gossipKeys":["AAAA"]}`} {
		if _, err := decode([]byte(bad)); err == nil || !strings.Contains(err.Error(), Key) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
