package servers

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// AdminUser is the user of an administrator's kubeconfig that is the cluster's.
const AdminUser = "admin"

// wholeCluster is the context and the cluster for all servers.
const wholeCluster = "skiff"

// extension of a kubeconfig's cluster lists all servers for clients that can
// change between them; others see one server in each context.
const extension = "skiff.sh/servers"

type extensionValue struct {
	Servers []string `json:"servers"`         // host:port
	Names   []string `json:"names,omitempty"` // of clusters and contexts that are written for them
}

// Named is an API server with its name in the cluster.
type Named struct{ Name, Address string }

// Kubeconfig is an administrator's kubeconfig: the context "skiff" for the whole
// cluster and one for each server under its own name.
type Kubeconfig struct {
	CA, Cert, Key []byte  // PEM
	Servers       []Named // the first is that of the context "skiff"
}

// config is the file's content where there was none.
func (k Kubeconfig) config() (*clientcmdapi.Config, error) {
	if len(k.Servers) == 0 {
		return nil, fmt.Errorf("kubeconfig: %w", ErrNone)
	}
	c := clientcmdapi.NewConfig()
	c.AuthInfos[AdminUser] = &clientcmdapi.AuthInfo{ClientCertificateData: k.Cert, ClientKeyData: k.Key}
	add := func(name string, s Named) *clientcmdapi.Cluster {
		cluster := &clientcmdapi.Cluster{Server: "https://" + s.Address, CertificateAuthorityData: k.CA}
		c.Clusters[name] = cluster
		c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: AdminUser}
		return cluster
	}
	var all extensionValue
	for _, s := range k.Servers {
		all.Servers, all.Names = append(all.Servers, s.Address), append(all.Names, s.Name)
		add(s.Name, s)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	add(wholeCluster, k.Servers[0]).Extensions = map[string]runtime.Object{extension: &runtime.Unknown{Raw: b, ContentType: runtime.ContentTypeJSON}}
	c.CurrentContext = wholeCluster
	return c, nil
}

// merge puts ours into a copy of what the file has. Ours are the user, where the
// clusters are and what they are trusted by, and which of the two the contexts of
// the same names use; those of servers that are no more go. All else is its
// owner's: other entries, the namespaces of our contexts, ways to our clusters
// such as a proxy, and the current context, unless there is none of that name.
func merge(have, ours *clientcmdapi.Config) *clientcmdapi.Config {
	out := have.DeepCopy()
	for _, name := range listed(have.Clusters[wholeCluster]).Names {
		if ours.Clusters[name] != nil {
			continue
		}
		delete(out.Clusters, name)
		if c := out.Contexts[name]; c != nil && c.Cluster == name {
			delete(out.Contexts, name)
		}
	}
	for name, c := range ours.Clusters {
		to := out.Clusters[name]
		if to == nil {
			out.Clusters[name] = c
			continue
		}
		to.Server, to.CertificateAuthorityData, to.CertificateAuthority, to.InsecureSkipTLSVerify = c.Server, c.CertificateAuthorityData, "", false
		delete(to.Extensions, extension)
		if v := c.Extensions[extension]; v != nil {
			if to.Extensions == nil {
				to.Extensions = map[string]runtime.Object{}
			}
			to.Extensions[extension] = v
		}
	}
	for name, c := range ours.Contexts {
		if to := out.Contexts[name]; to != nil {
			to.Cluster, to.AuthInfo = c.Cluster, c.AuthInfo
		} else {
			out.Contexts[name] = c
		}
	}
	out.AuthInfos[AdminUser] = ours.AuthInfos[AdminUser]
	if out.Contexts[out.CurrentContext] == nil {
		out.CurrentContext = ours.CurrentContext
	}
	return out
}

// Write brings the file at path, with mode 0600, up to date in one step: see merge
// for what it keeps. A file that is damaged is replaced, and the log says so. One
// that says all this already is left as it is.
func (k Kubeconfig) Write(path string, log *slog.Logger) error {
	c, err := k.config()
	if err != nil {
		return err
	}
	before := ""
	if file, err := os.ReadFile(path); err == nil {
		have, err := clientcmd.Load(file)
		var b []byte
		if err == nil {
			b, err = clientcmd.Write(*have)
		}
		if err != nil {
			log.Warn("the kubeconfig is damaged: it is written anew, without what others put into it", "file", path, "error", err)
		} else {
			c, before = merge(have, c), string(b)
		}
	}
	b, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if string(b) == before {
		return nil
	}
	return durable.Replace(path, b, 0o600)
}

// listed is what a cluster's extension says; empty if there is none.
func listed(c *clientcmdapi.Cluster) (all extensionValue) {
	if c == nil {
		return all
	}
	known, ok := c.Extensions[extension].(*runtime.Unknown)
	if !ok || json.Unmarshal(known.Raw, &all) != nil {
		return extensionValue{}
	}
	return all
}

// OfCluster lists the servers that a kubeconfig's cluster names, the cluster's
// own first; nil if it is not of the whole cluster.
func OfCluster(c *clientcmdapi.Cluster) []Server {
	all := listed(c)
	if len(all.Servers) == 0 {
		return nil
	}
	own := strings.TrimPrefix(c.Server, "https://")
	out := []Server{{Address: own}}
	for _, a := range all.Servers {
		if a != own {
			out = append(out, Server{Address: a})
		}
	}
	return out
}
