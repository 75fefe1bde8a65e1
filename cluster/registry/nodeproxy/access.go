// Package nodeproxy connects API subresources to what runs on nodes: logs,
// exec, attach and port-forward through the node's HTTPS API, and the proxy
// subresources of pods, services and nodes.
//
// Limits: a request goes from the API server straight to the node's internal
// address, and for pods/proxy and services/proxy to the pod's address, so the
// API server's host has to be able to reach both.
package nodeproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Endpoint is where a node's API answers.
type Endpoint struct {
	// URL has scheme and host with port.
	URL *url.URL
	// Transport presents the API server's client certificate.
	Transport http.RoundTripper
	// Insecure is Transport without verification of the node's certificate, for
	// logs when the caller asks for that. Nil refuses such requests.
	Insecure http.RoundTripper
}

// NodeAccess finds the API of a node.
type NodeAccess interface {
	// NodeAPI gives the endpoint of the node called name. The error is fit to
	// be returned to API clients.
	NodeAPI(ctx context.Context, name string) (*Endpoint, error)
}

// AccessConfig configures NewAccess.
type AccessConfig struct {
	// Node reads a Node object.
	Node func(ctx context.Context, name string) (*corev1.Node, error)
	// TLS returns the client configuration: the API server's certificate and
	// the CAs that sign the nodes' serving certificates. It is asked for every
	// request; when its RootCAs are others, new connections are made.
	// Certificates that renew themselves belong into GetClientCertificate.
	TLS func() *tls.Config
}

// NewAccess is the NodeAccess that believes the status of the Node objects:
// the first InternalIP (else Hostname, else ExternalIP) and the port of
// status.daemonEndpoints.
func NewAccess(cfg AccessConfig) (NodeAccess, error) {
	if cfg.Node == nil || cfg.TLS == nil {
		return nil, errors.New("access to nodes: Node and TLS are both needed")
	}
	return &access{node: cfg.Node, tls: cfg.TLS}, nil
}

type access struct {
	node func(ctx context.Context, name string) (*corev1.Node, error)
	tls  func() *tls.Config

	mu        sync.Mutex
	roots     *x509.CertPool // that the transports were made for
	transport *http.Transport
	insecure  *http.Transport
}

// transports are those for the CAs that are trusted now.
func (a *access) transports() (verifying, trusting *http.Transport) {
	config := a.tls()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.transport == nil || a.roots != config.RootCAs {
		if a.transport != nil {
			a.transport.CloseIdleConnections()
			a.insecure.CloseIdleConnections()
		}
		blind := config.Clone()
		blind.InsecureSkipVerify = true
		blind.VerifyConnection, blind.VerifyPeerCertificate = nil, nil
		a.roots, a.transport, a.insecure = config.RootCAs, newTransport(config), newTransport(blind)
	}
	return a.transport, a.insecure
}

// newTransport speaks HTTP/1.1 only: upgrades to SPDY and WebSocket are not
// defined on HTTP/2.
func newTransport(t *tls.Config) *http.Transport {
	t = t.Clone()
	t.NextProtos = []string{"http/1.1"}
	return &http.Transport{
		TLSClientConfig:       t,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

const defaultNodePort = 10250

func (a *access) NodeAPI(ctx context.Context, name string) (*Endpoint, error) {
	node, err := a.node(ctx, name)
	if err != nil {
		return nil, err
	}
	host, ok := nodeHost(node)
	if !ok {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %q has no address yet", name))
	}
	port := int(node.Status.DaemonEndpoints.KubeletEndpoint.Port)
	if port == 0 {
		port = defaultNodePort
	}
	verifying, trusting := a.transports()
	return &Endpoint{
		URL:       &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port))},
		Transport: verifying,
		Insecure:  trusting,
	}, nil
}

func nodeHost(node *corev1.Node) (string, bool) {
	for _, want := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeHostName, corev1.NodeExternalIP} {
		for _, addr := range node.Status.Addresses {
			if addr.Type == want && addr.Address != "" {
				return addr.Address, true
			}
		}
	}
	return "", false
}
