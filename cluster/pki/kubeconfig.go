package pki

import (
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// ReportExpired says in the log when the user of that name in the kubeconfig at
// path has a client certificate whose time is over: the last trace of leaf certificates that a
// stopped server leaves. It is called before the file is replaced.
func (p *PKI) ReportExpired(path, user string) {
	c, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return
	}
	now := p.clock()
	if u := c.AuthInfos[user]; u != nil {
		if certs, err := ParseCerts(u.ClientCertificateData); err == nil && now.After(certs[0].NotAfter) {
			p.log.Load().Warn("the certificates of this server had expired while it was off: all have been issued anew",
				"expired", certs[0].NotAfter.Format(time.RFC3339), "kubeconfig", path)
		}
	}
}
