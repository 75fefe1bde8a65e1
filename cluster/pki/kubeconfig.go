package pki

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// WriteKubeconfig writes a kubeconfig with an embedded client certificate to
// path, mode 0600, replacing the file in one step. server is a URL.
func (p *PKI) WriteKubeconfig(path, server string, certPEM, keyPEM []byte) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["skiff"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: p.Bundle()}
	c.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	c.Contexts["skiff"] = &clientcmdapi.Context{Cluster: "skiff", AuthInfo: "admin"}
	c.CurrentContext = "skiff"
	b, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	expired := p.KubeconfigExpired(path)
	if err := replaceFile(path, b); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if expired {
		p.log.Load().Warn("the certificates of this server had expired while it was off: all have been issued anew", "kubeconfig", path)
	}
	return nil
}

// KubeconfigExpired says whether path holds a client certificate whose time is
// over: the last trace of leaf certificates that a stopped server leaves.
func (p *PKI) KubeconfigExpired(path string) bool {
	c, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return false
	}
	for _, u := range c.AuthInfos {
		if certs, err := ParseCerts(u.ClientCertificateData); err == nil && p.clock().After(certs[0].NotAfter) {
			return true
		}
	}
	return false
}
