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
	if err := replaceFile(path, b); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
