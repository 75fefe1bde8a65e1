package cluster

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// memberName is the common name in the certificates of servers among
// themselves; apiServerName that of the API server towards nodes.
const (
	memberName    = "skiff:server"
	apiServerName = "skiff:apiserver"
	adminName     = "skiff:admin"
	adminGroup    = "system:masters"
)

// validID tells whether NodeID or a restore can have made it.
func validID(id string) bool {
	return id != "" && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// NodeID reads this member's stable identity, or makes one. It refuses to make one
// for a directory that holds what another belongs to: a server would wait for
// ever to be let into its own log, an agent would not be known.
func NodeID(dir string) (string, error) {
	path := filepath.Join(dir, "node-id")
	b, err := os.ReadFile(path)
	if err == nil {
		if id := strings.TrimSpace(string(b)); validID(id) {
			return id, nil
		}
		err = errors.New("it is damaged")
	}
	if owner := raftdir.Owner(dir); owner != "" && !errors.Is(err, unix.EISDIR) { // lost or damaged: the log knows
		if err := durable.Replace(path, []byte(owner+"\n"), 0o644); err != nil {
			return "", fmt.Errorf("identity of this host: %w", err)
		}
		return owner, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("identity of this host: %s: %w: put it back (the ID of a server is in %s beside it), or run skiff reset --delete-data and join again", path, err, membership.ClusterFile)
	}
	for _, of := range []string{raftdir.LogPath(dir), filepath.Join(dir, "agent", membership.CertFile)} {
		if _, err := os.Stat(of); !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("identity of this host: %s is missing, and %s belongs to it: put it back (the ID of a server is in %s beside it), or run skiff reset --delete-data and join again", path, of, membership.ClusterFile)
		}
	}
	id := strings.ToLower(rand.Text()[:16])
	if err := durable.Replace(path, []byte(id+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("identity of this host: %w", err)
	}
	return id, nil
}

// servingRequest describes the API's serving certificate: every name and
// address under which clients may reach this server, and its ID.
func servingRequest(c Config, id string) pki.Request {
	r := pki.Request{CommonName: apiServerName, DNSNames: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.ClusterDomain, "localhost", id}}
	seen := map[string]bool{}
	add := func(name string) {
		if name == "" || seen[name] {
			return
		}
		seen[name] = true
		if ip := net.ParseIP(name); ip != nil {
			r.IPs = append(r.IPs, ip)
		} else {
			r.DNSNames = append(r.DNSNames, name)
		}
	}
	add("127.0.0.1")
	add("::1")
	add(c.AdvertiseAddress.String())
	add(c.serviceAddress(1).String())
	add(c.Name)
	if host, err := os.Hostname(); err == nil {
		add(host)
	}
	for _, n := range c.ServerNames {
		add(n)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return r
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			add(p.Addr().String())
		}
	}
	return r
}

// memberTLS lets only servers of this cluster pass, in both directions, at
// whatever address they are. removed tells of those that are none any more.
func memberTLS(l *pki.Leaf, removed func(id string) bool) *tls.Config {
	named := pki.CommonName(memberName)
	return pki.MutualTLS(l, pki.TLSOptions{Protos: consensus.Protocols(), Verify: func(peer *x509.Certificate) error {
		if err := named(peer); err != nil {
			return err
		}
		if slices.ContainsFunc(peer.DNSNames, removed) {
			return errors.New("the peer was removed from the cluster")
		}
		return nil
	}})
}

// nodeTLS shows the API server's certificate to nodes.
func nodeTLS(l *pki.Leaf) func() *tls.Config {
	return func() *tls.Config { return pki.ClientTLS(l, pki.TLSOptions{}) }
}
