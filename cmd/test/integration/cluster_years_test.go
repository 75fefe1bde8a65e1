//go:build integration

package integration

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
)

// testYearsOff starts a cluster whose certificates have expired, as after two
// years without power. Servers make theirs at each start; what remains are those
// of agents and in kubeconfigs.
func (c *devCluster) testYearsOff(t *testing.T) {
	c.expireAll(t)
	began := time.Now()
	for _, n := range c.status(t).Nodes {
		c.start(t, n.Name)
	}
	c.healthy(t)
	t.Logf("all nodes Ready with new certificates %v after the start", time.Since(began).Round(time.Millisecond))
	c.undisturbed(t)
	eventually(t, 20*time.Second, func() error { // its node may be Ready from before
		log, err := os.ReadFile(filepath.Join(c.Dir(), "nodes", "agent-1", "log"))
		if err == nil && !strings.Contains(string(log), "it has expired") {
			err = errors.New("the agent does not say that its certificate had expired")
		}
		return err
	})
	for server := range c.clients {
		if out, err := c.Output(t.Context(), server, "skiff", "kubectl", "--kubeconfig", filepath.Join(c.data(server), "admin.kubeconfig"), "get", "nodes", "-o", "name"); err != nil || !strings.Contains(out, "agent-1") {
			t.Errorf("kubeconfig of %s: %q, %v", server, out, err)
		}
	}
}

// expireAll ends skiff on all nodes and makes certificates on their disks ones
// that have expired.
func (c *devCluster) expireAll(t *testing.T) {
	t.Helper()
	for _, n := range c.status(t).Nodes {
		c.kill(t, n.Name)
	}
	read := func(node string, path ...string) []byte { // a node's disk is mounted in the node only
		out, err := c.Output(t.Context(), node, "cat", filepath.Join(append([]string{c.data(node)}, path...)...))
		must(t, err)
		return []byte(out)
	}
	replace := func(b []byte, node string, path ...string) {
		tmp := filepath.Join(t.TempDir(), "new")
		must(t, os.WriteFile(tmp, b, 0o600))
		_, err := c.Output(t.Context(), node, "sh", "-c", `cat "$0" > "$1"`, tmp, filepath.Join(append([]string{c.data(node)}, path...)...))
		must(t, err)
	}
	ca := parseCA(t, read("server-1", "pki", "ca.crt"), read("server-1", "pki", "ca.key"))
	replace(ca.expire(t, read("agent-1", "agent", "node.crt")), "agent-1", "agent", "node.crt")
	for server := range c.clients {
		kc, err := clientcmd.Load(read(server, "admin.kubeconfig"))
		must(t, err)
		for _, user := range kc.AuthInfos {
			user.ClientCertificateData = ca.expire(t, user.ClientCertificateData)
		}
		b, err := clientcmd.Write(*kc)
		must(t, err)
		replace(b, server, "admin.kubeconfig")
	}
}

// clusterCA signs with the keys of a server.
type clusterCA struct {
	cert *x509.Certificate
	key  any
}

func parseCA(t *testing.T, certPEM, keyPEM []byte) clusterCA {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	key, err := keyutil.ParsePrivateKeyPEM(keyPEM)
	must(t, err)
	return clusterCA{cert, key}
}

// expire makes the certificate again as one that ended a year ago.
func (ca clusterCA) expire(t *testing.T, certPEM []byte) []byte {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil {
		t.Fatal(fmt.Errorf("no certificate in %q", certPEM))
	}
	old, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	const year = 365 * 24 * time.Hour
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: old.Subject, DNSNames: old.DNSNames, IPAddresses: old.IPAddresses,
		KeyUsage: old.KeyUsage, ExtKeyUsage: old.ExtKeyUsage, NotBefore: time.Now().Add(-2 * year), NotAfter: time.Now().Add(-year),
	}, ca.cert, old.PublicKey, ca.key)
	must(t, err)
	block.Bytes = der
	return append(pem.EncodeToMemory(block), rest...)
}
