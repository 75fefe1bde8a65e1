package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// extension of a kubeconfig's cluster lists all servers for clients that can
// change between them; others see one server in each context.
const extension = "skiff.sh/servers"

type extensionValue struct {
	Servers []string `json:"servers"` // host:port
}

// Named is an API server with its name in the cluster.
type Named struct{ Name, Address string }

// Kubeconfig is an administrator's kubeconfig: the context "skiff" for the whole
// cluster and one for each server under its own name.
type Kubeconfig struct {
	CA, Cert, Key []byte  // PEM
	Servers       []Named // the first is that of the context "skiff"
}

// Encode gives the file's content.
func (k Kubeconfig) Encode() ([]byte, error) {
	if len(k.Servers) == 0 {
		return nil, fmt.Errorf("kubeconfig: %w", ErrNone)
	}
	const whole, user = "skiff", "admin"
	c := clientcmdapi.NewConfig()
	c.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: k.Cert, ClientKeyData: k.Key}
	add := func(name string, s Named) *clientcmdapi.Cluster {
		cluster := &clientcmdapi.Cluster{Server: "https://" + s.Address, CertificateAuthorityData: k.CA}
		c.Clusters[name] = cluster
		c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
		return cluster
	}
	var all extensionValue
	for _, s := range k.Servers {
		all.Servers = append(all.Servers, s.Address)
		add(s.Name, s)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	add(whole, k.Servers[0]).Extensions = map[string]runtime.Object{extension: &runtime.Unknown{Raw: b, ContentType: runtime.ContentTypeJSON}}
	c.CurrentContext = whole
	if b, err = clientcmd.Write(*c); err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return b, nil
}

// Write writes the file with mode 0600, replacing it in one step. It leaves one
// that has this content already.
func (k Kubeconfig) Write(path string) error {
	b, err := k.Encode()
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && string(have) == string(b) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// OfCluster lists the servers that a kubeconfig's cluster names, the cluster's
// own first; nil if it is not of the whole cluster.
func OfCluster(c *clientcmdapi.Cluster) []Server {
	if c == nil {
		return nil
	}
	known, ok := c.Extensions[extension].(*runtime.Unknown)
	if !ok {
		return nil
	}
	var all extensionValue
	if err := json.Unmarshal(known.Raw, &all); err != nil {
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
