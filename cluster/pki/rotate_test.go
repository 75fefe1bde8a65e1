package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func mustOpen(t testing.TB) *PKI {
	t.Helper()
	p, err := Open(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustLeaf(t testing.TB, p *PKI, name string) *Leaf {
	t.Helper()
	l, err := p.Leaf(Request{CommonName: name, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// member is another member of p's cluster, with files of its own.
func member(t testing.TB, p *PKI) *PKI {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := Install(dir, p.Files(), nil); err != nil {
		t.Fatal(err)
	}
	q, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func set(t testing.TB, p *PKI, k Keys) {
	t.Helper()
	if err := p.Set(k); err != nil {
		t.Fatal(err)
	}
}

// echo serves TLS and tells each caller the common name it was verified as.
func echo(t testing.TB, l *Leaf, config *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.VerifiedChains) > 0 {
			name = r.TLS.VerifiedChains[0][0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s resumed=%v", name, r.TLS.DidResume)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Listener = tls.NewListener(s.Listener, config)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// call makes a new connection as l.
func call(t testing.TB, l CertSource, addr string) (string, error) {
	t.Helper()
	tr := &http.Transport{DialTLSContext: DialTLS(l, TLSOptions{}, nil), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + addr)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return b.String(), err
}

// TestRotationOfTheCA goes through the phases with members that come along and
// members that sleep through them.
func TestRotationOfTheCA(t *testing.T) {
	a := mustOpen(t)
	b, asleep := member(t, a), member(t, a)
	server, client, late := mustLeaf(t, a, "server"), mustLeaf(t, b, "client"), mustLeaf(t, asleep, "late")
	addr := echo(t, server, server.ServerTLS())
	lateAddr := echo(t, late, late.ServerTLS())
	works := func(when string, l CertSource, addr, want string) {
		t.Helper()
		if got, err := call(t, l, addr); err != nil || got != want+" resumed=false" {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	works("before", client, addr, "client")
	old := a.Keys()
	fresh, err := a.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	first, _ := server.Certificate()

	add := Keys{CAs: []CA{old.CAs[0], fresh}, SAKey: old.SAKey}
	set(t, a, add)
	works("the server trusts the new one, the client does not know it", client, addr, "client")
	if c, _ := server.Certificate(); c != first {
		t.Error("a certificate was replaced though the same CA signs")
	}
	set(t, b, add)

	use := Keys{CAs: []CA{fresh, {Cert: old.CAs[0].Cert}}, SAKey: old.SAKey}
	set(t, a, use)
	if c, _ := server.Certificate(); c == first || c.Leaf.Issuer.String() == first.Leaf.Issuer.String() {
		t.Error("the leaf was not issued anew by the new CA")
	}
	works("new server, old client", client, addr, "client")
	set(t, b, use)
	works("both new", client, addr, "client")
	works("a member that slept through it reaches the new ones", late, addr, "late")
	works("and is reached", client, lateAddr, "client")
	if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM(a.Bundle()) || len(a.CAs()) != 2 || !bytes.HasPrefix(a.Bundle(), fresh.Cert) {
		t.Error("the bundle is not the new CA, then the old one")
	}

	done := Keys{CAs: []CA{{Cert: fresh.Cert, Key: fresh.Key}}, SAKey: old.SAKey}
	set(t, a, done)
	set(t, b, done)
	works("old one dropped", client, addr, "client")
	if got, err := call(t, late, addr); err == nil {
		t.Errorf("a member with the dropped CA only: %q", got)
	}
	if a.Trusts(late.cert.Leaf) || a.Trusts(asleep.CAs()[0]) || !a.Trusts(a.CAs()[0]) {
		t.Error("Trusts is wrong")
	}
	// What was installed is on the disk as well.
	again, err := Open(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bundle(), fresh.Cert) || !bytes.Equal(again.Keys().CAs[0].Key, fresh.Key) {
		t.Error("the files hold something else")
	}
	if _, err := os.Stat(filepath.Join(a.dir, CrossFile)); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", CrossFile, err)
	}
}

func TestSessionsAreNotResumed(t *testing.T) {
	p := mustOpen(t)
	server, client := mustLeaf(t, p, "server"), mustLeaf(t, p, "client")
	addr := echo(t, server, server.ServerTLS())
	config := ClientTLS(client, TLSOptions{Protos: []string{"http/1.1"}})
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8) // a caller that would like to
	for range 3 {
		tr := &http.Transport{TLSClientConfig: config}
		resp, err := (&http.Client{Transport: tr}).Get("https://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if b.String() != "client resumed=false" {
			t.Errorf("got %q", b.String())
		}
	}
}

func TestMutualTLSRefuses(t *testing.T) {
	p, stranger := mustOpen(t), mustOpen(t)
	o := TLSOptions{Protos: []string{"a/1"}, Verify: CommonName("server")}
	server, foreign := mustLeaf(t, p, "server"), mustLeaf(t, stranger, "server")
	for _, c := range []struct {
		name           string
		server, client *Leaf
		options        TLSOptions // the client's
		want           string
	}{
		{"good", server, mustLeaf(t, p, "server"), o, ""},
		{"a foreign server", foreign, server, o, "unknown authority"},
		{"a foreign client", server, foreign, TLSOptions{Protos: o.Protos, Verify: func(*x509.Certificate) error { return nil }}, "unknown"},
		{"a node as client", server, mustLeaf(t, p, "system:node:x"), o, "bad certificate"},
		{"a node as server", mustLeaf(t, p, "system:node:x"), server, o, "the peer is"},
		{"no idea who", server, mustLeaf(t, p, "server"), TLSOptions{Protos: o.Protos}, "nothing says"},
		{"another protocol", server, mustLeaf(t, p, "server"), TLSOptions{Protos: []string{"b/1"}, Verify: o.Verify}, "protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			serverOptions := o
			if c.name == "a node as server" {
				serverOptions.Verify = nil
			}
			ln, err := tls.Listen("tcp", "127.0.0.1:0", MutualTLS(c.server, serverOptions))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				if conn, err := ln.Accept(); err == nil {
					conn.Write([]byte("k"))
					conn.Close()
				}
			}()
			conn, err := tls.Dial("tcp", ln.Addr().String(), MutualTLS(c.client, c.options))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// A cluster that was switched off, or whose clock jumped: whoever asks for a
// certificate gets one that is good now.
func TestLeafHealsWhateverTheClockDoes(t *testing.T) {
	p := mustOpen(t)
	var log bytes.Buffer
	p.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
	l := mustLeaf(t, p, "x")
	start := time.Now()
	for _, c := range []struct {
		name  string
		at    time.Duration
		renew bool
		want  string
	}{
		{"an hour", time.Hour, false, ""},
		{"two years later", 2 * 365 * 24 * time.Hour, true, "had expired"},
		{"the same", 2*365*24*time.Hour + time.Hour, false, ""},
		{"back again", 0, true, "clock"},
		{"nine months", 9 * 30 * 24 * time.Hour, true, "two thirds"},
	} {
		log.Reset()
		now := start.Add(c.at)
		p.clock = func() time.Time { return now }
		before := l.cert
		after, err := l.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		if (before != after) != c.renew {
			t.Errorf("%s: renewed %v, want %v", c.name, before != after, c.renew)
		}
		if now.Before(after.Leaf.NotBefore) || now.After(after.Leaf.NotAfter) {
			t.Errorf("%s: valid from %s to %s", c.name, after.Leaf.NotBefore, after.Leaf.NotAfter)
		}
		if !strings.Contains(log.String(), c.want) || c.renew == (log.Len() == 0) {
			t.Errorf("%s: log %q, want %q", c.name, log.String(), c.want)
		}
	}
}

func TestServerThatWasOffForTwoYears(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	write := func(p *PKI) {
		t.Helper()
		cert, key, err := p.Issue(Request{CommonName: "admin"})
		if err != nil {
			t.Fatal(err)
		}
		c := clientcmdapi.NewConfig()
		c.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
		if err := clientcmd.WriteToFile(*c, path); err != nil {
			t.Fatal(err)
		}
	}
	write(p)
	later, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(2 * 365 * 24 * time.Hour)
	later.clock = func() time.Time { return now }
	var log bytes.Buffer
	later.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
	l := mustLeaf(t, later, "x")
	if l.cert.Leaf.NotAfter.Before(now) {
		t.Errorf("the new leaf ends at %s", l.cert.Leaf.NotAfter)
	}
	later.ReportExpired(path, "admin")
	if !strings.Contains(log.String(), "issued anew") {
		t.Errorf("log %q", log.String())
	}
	log.Reset()
	later.ReportExpired(path, "other") // somebody else's certificate
	write(later)
	later.ReportExpired(path, "admin")
	later.ReportExpired(path+"x", "admin")
	if log.Len() > 0 {
		t.Errorf("a new or missing file, or another user: %q", log.String())
	}
}

func TestSetSurvivesACrash(t *testing.T) {
	p := mustOpen(t)
	fresh, err := p.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	old := p.Keys()
	next := Keys{CAs: []CA{fresh, {Cert: old.CAs[0].Cert}}, SAKey: old.SAKey}
	for _, c := range []struct {
		from, to Keys
	}{{old, next}, {next, Keys{CAs: []CA{{Cert: fresh.Cert, Key: fresh.Key}}, SAKey: old.SAKey}}} {
		for at := 1; ; at++ {
			set(t, p, c.from)
			n := 0
			died := fmt.Errorf("died")
			p.writing = func(string) error {
				if n++; n == at {
					return died
				}
				return nil
			}
			err := p.Set(c.to)
			p.writing = nil
			q, oerr := Open(p.dir)
			if oerr != nil {
				t.Fatalf("after %d files: %v", at-1, oerr)
			}
			if now := q.Keys().CAs[0].Key; !bytes.Equal(now, c.from.CAs[0].Key) && !bytes.Equal(now, c.to.CAs[0].Key) {
				t.Errorf("after %d files: neither the old nor the new CA signs", at-1)
			}
			if err == nil {
				break
			}
			p.now.Store(q.now.Load()) // as after a restart
		}
	}
}

func TestSetRefuses(t *testing.T) {
	p := mustOpen(t)
	other := mustOpen(t).Keys()
	k := p.Keys()
	for name, bad := range map[string]Keys{
		"none": {SAKey: k.SAKey}, "no key": {CAs: []CA{{Cert: k.CAs[0].Cert}}, SAKey: k.SAKey},
		"another's key":   {CAs: []CA{{Cert: k.CAs[0].Cert, Key: other.CAs[0].Key}}, SAKey: k.SAKey},
		"another's cross": {CAs: []CA{{Cert: k.CAs[0].Cert, Key: k.CAs[0].Key, Cross: other.CAs[0].Cert}}, SAKey: k.SAKey},
		"no sa key":       {CAs: k.CAs},
	} {
		if err := p.Set(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if q, err := Open(p.dir); err != nil || !bytes.Equal(q.Bundle(), p.Bundle()) {
		t.Errorf("something was written: %v", err)
	}
}

func TestLeavesAreReissuedOnDemand(t *testing.T) {
	p := mustOpen(t)
	l := mustLeaf(t, p, "x")
	first, _ := l.Certificate()
	k := p.Keys()
	set(t, p, k)
	if c, _ := l.Certificate(); c != first {
		t.Error("the same keys: issued anew")
	}
	k.Leaves++
	set(t, p, k)
	if c, _ := l.Certificate(); c == first {
		t.Error("not issued anew")
	}
	// The next process issues its own in any case, and has nothing to tell.
	var log bytes.Buffer
	again, err := Open(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	again.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
	l = mustLeaf(t, again, "x")
	set(t, again, k)
	set(t, again, k)
	if _, err := l.Certificate(); err != nil || log.Len() > 0 {
		t.Errorf("after a restart: %v, log %q", err, log.String())
	}
	k.Leaves++
	set(t, again, k)
	if _, err := l.Certificate(); err != nil || !strings.Contains(log.String(), "rotated") {
		t.Errorf("after a rotation: %v, log %q", err, log.String())
	}
}
