package membership

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/durable"
)

func TestCertificatesAreRenewedInTime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	year := n.Leaf().NotAfter.Sub(n.Leaf().NotBefore)
	if why := n.due(); why != "" {
		t.Errorf("due at once: %s", why)
	}
	for _, tc := range []struct {
		after time.Duration
		why   string
	}{{year / 2, ""}, {year * 3 / 4, "two thirds"}, {2 * year, "it has expired"}} {
		n.offset.Store(int64(tc.after))
		if why := n.due(); (why == "") != (tc.why == "") || !strings.Contains(why, tc.why) {
			t.Errorf("after %s: %q, want %q", tc.after, why, tc.why)
		}
	}
	n.offset.Store(0)
	moved := "10.0.0.77"
	n.addr.Store(&moved)
	if why := n.due(); !strings.Contains(why, "address") {
		t.Errorf("with a new address: %q", why)
	}
	before, key := n.Leaf(), n.key
	ended, stop := n.run(t)
	n.wasAsked(t)
	if n.Leaf().Equal(before) || n.key.Equal(key) || n.Leaf().VerifyHostname(moved) != nil {
		t.Error("key and certificate are the old ones")
	}
	n.open(t)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// expired makes a node whose certificate ended long ago, as after two years
// without power.
func expired(t testing.TB, b *bench, n *node) *x509.Certificate {
	t.Helper()
	old, err := expiredCert(b.pki, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Install(old, b.pki.Bundle()); err != nil {
		t.Fatal(err)
	}
	return parseOne(t, old)
}

func TestAnExpiredCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	old := expired(t, b, n)
	n.open(t)
	if time.Now().Before(old.NotAfter) {
		t.Fatal("the certificate of the test is valid")
	}
	_, _ = n.run(t)
	n.wasAsked(t)
	if !time.Now().Before(n.Leaf().NotAfter) {
		t.Error("still expired")
	}
	// It is good for the API.
	r, err := clientOf(t, n.ClientTLS()).Get("https://" + b.addr() + NodeConfigPath + "?generation=0")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("answer %s", r.Status)
	}
}

func TestRenewalIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	other := joined(t, b, "v", "id-v")
	next, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	good := func() RenewRequest {
		r, _, err := n.renewRequest(next)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	server, _, err := b.pki.Issue(pki.Request{CommonName: "skiff:server"})
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(r *RenewRequest){
		"not signed with the key":     func(r *RenewRequest) { r.Old = other.pem },
		"is not that of a node":       func(r *RenewRequest) { r.Old = server },
		"ahead of the server's":       func(r *RenewRequest) { r.Time = r.Time.Add(time.Hour) },
		"the old certificate: no PEM": func(r *RenewRequest) { r.Old = nil },
		"certificate request of w":    func(r *RenewRequest) { r.CSR = []byte("x"); _ = signRenewal(r, n.key) },
		"that of server a":            func(r *RenewRequest) { r.Address = "10.0.0.1"; _ = signRenewal(r, n.key) },
		"of a CA that this cluster":   func(r *RenewRequest) { r.Old, _ = foreignCert(t, n) },
	} {
		r := good()
		change(&r)
		_, err := b.Renew(context.Background(), r)
		refusedWith(t, err, want)
	}
	for _, r := range []func(*RenewRequest){
		func(r *RenewRequest) { r.Time = r.Time.Add(time.Second) },
		func(r *RenewRequest) { r.Address = "10.0.0.50" },
		func(r *RenewRequest) { r.CSR = agentRequest(t, "w", "id-w").CSR },
		func(r *RenewRequest) { r.Signature = nil },
	} {
		changed := good()
		r(&changed)
		_, err := b.Renew(context.Background(), changed)
		refusedWith(t, err, "not signed with the key")
	}
	if _, err := b.Renew(context.Background(), good()); err != nil {
		t.Error(err)
	}
}

// A crash between the two writes of a renewal leaves a working identity.
func TestACrashDuringTheRenewal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	next, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.writeKey(newKeyFile, next); err != nil {
		t.Fatal(err)
	}
	n.open(t) // before the answer: the old one
	if n.key.Equal(next) {
		t.Error("the new key is used before its certificate has come")
	}
	csr, _ := csrFor("w", next)
	cert, err := b.sign("w", "id-w", "10.0.0.9", csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.Replace(n.path(CertFile), cert, 0o600); err != nil {
		t.Fatal(err)
	}
	n.open(t) // before the key was renamed
	if !n.key.Equal(next) {
		t.Error("the certificate has come, and the old key is used")
	}
	n.open(t)
	if _, err := n.NodeConfig(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestTheClusterAsksForANewCertificate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	if c, err := n.NodeConfig(context.Background()); err != nil || c.Renew || c.Generation != 7 {
		t.Fatalf("%+v, %v", c, err)
	}
	var leaves, trust atomic.Uint64
	trust.Store(7)
	b.c.Leaves, b.c.Trust = leaves.Load, func() (uint64, [][]byte) { return trust.Load(), nil }
	leaves.Store(9)
	trust.Store(9)
	if c, err := n.NodeConfig(context.Background()); err != nil || !c.Renew {
		t.Errorf("%+v, %v", c, err)
	}
	old := n.Leaf()
	_, _ = n.run(t)
	n.wasAsked(t)
	if n.Leaf().Equal(old) {
		t.Error("not renewed")
	}
	n.Refresh()
	if c := n.wasAsked(t); c.Renew {
		t.Error("asked again")
	}
	n.open(t)
	if c, err := n.NodeConfig(context.Background()); err != nil || c.Renew {
		t.Errorf("after a restart: %+v, %v", c, err)
	}
}

// TestNoServerIsSaidOnce: an agent goes on asking while no server answers, and
// complains once.
func TestNoServerIsSaidOnce(t *testing.T) {
	t.Parallel()
	n := joined(t, newBench(t), "w", "id-w")
	var log bytes.Buffer
	n.c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	tries := make(chan struct{}, 16)
	n.c.Dial = func(context.Context, string, string) (net.Conn, error) {
		tries <- struct{}{}
		return nil, errors.New("nobody is there")
	}
	n.open(t)
	ended, stop := n.run(t)
	for range 3 {
		select {
		case <-tries:
		case <-time.After(20 * time.Second):
			t.Fatal("it does not ask again")
		}
	}
	stop()
	<-ended
	if c := strings.Count(log.String(), "nobody is there"); c != 1 {
		t.Errorf("said %d times:\n%s", c, log.String())
	}
}

// The agent learns of a new CA before it signs, renews when it does, and works
// when the old one is gone.
func TestTheCAIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	n := joined(t, b, "w", "id-w")
	next, err := b.pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	keys := b.pki.Keys()
	step := func(change func(*pki.Keys)) *NodeConfig {
		t.Helper()
		change(&keys)
		if err := b.pki.Set(keys); err != nil {
			t.Fatal(err)
		}
		b.server.CloseClientConnections()
		c, err := n.NodeConfig(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := keys.CAs
	if c := step(func(k *pki.Keys) { k.CAs = append(old[:1:1], next) }); c.Renew {
		t.Error("renewed before the new CA signs")
	}
	if c := step(func(k *pki.Keys) { k.CAs = append([]pki.CA{next}, old...) }); !c.Renew {
		t.Error("not renewed when the new CA signs")
	}
	if err := n.Renew(context.Background(), "test"); err != nil {
		t.Fatal(err)
	}
	if c := step(func(k *pki.Keys) { k.CAs = []pki.CA{next} }); c.Renew {
		t.Error("renewed twice")
	}
	n.open(t)
}
