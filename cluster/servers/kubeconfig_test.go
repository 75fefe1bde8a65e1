package servers

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func TestKubeconfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	k := Kubeconfig{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key"), Servers: []Named{{"two", "10.0.0.2:6443"}, {"one", "10.0.0.1:6443"}}}
	if err := k.Write(path, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	c, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.CurrentContext != "skiff" || len(c.Contexts) != 3 || c.Clusters["skiff"].Server != "https://10.0.0.2:6443" ||
		c.Clusters["one"].Server != "https://10.0.0.1:6443" || string(c.AuthInfos["admin"].ClientKeyData) != "key" {
		t.Errorf("kubeconfig %+v", c)
	}
	want := []Server{{Address: "10.0.0.2:6443"}, {Address: "10.0.0.1:6443"}}
	if got := OfCluster(c.Clusters["skiff"]); !reflect.DeepEqual(got, want) {
		t.Errorf("servers of the cluster: %v", got)
	}
	// Who names one server means that one.
	if got := OfCluster(c.Clusters["one"]); got != nil {
		t.Errorf("servers of one server: %v", got)
	}
	// A tool that rewrites the file keeps the list.
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	if c, err = clientcmd.LoadFromFile(path); err != nil || !reflect.DeepEqual(OfCluster(c.Clusters["skiff"]), want) {
		t.Errorf("after a rewrite: %v, %v", OfCluster(c.Clusters["skiff"]), err)
	}
	if err := k.Write(path, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1e9, 0)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if err := k.Write(path, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("an unchanged file was written again: %v, %v", info.ModTime(), err)
	}
	if err := (Kubeconfig{}).Write(path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a kubeconfig without servers was written")
	}
}

// What people put into the file stays; what is the cluster's is kept right.
func TestKubeconfigIsMerged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	k := Kubeconfig{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key"), Servers: []Named{{"one", "10.0.0.1:6443"}, {"two", "10.0.0.2:6443"}}}
	write := func() *clientcmdapi.Config {
		t.Helper()
		if err := k.Write(path, log); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := clientcmd.Load(b)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	edit := func(c *clientcmdapi.Config) {
		t.Helper()
		if err := clientcmd.WriteToFile(*c, path); err != nil {
			t.Fatal(err)
		}
	}
	c := write()
	c.Clusters["far"] = &clientcmdapi.Cluster{Server: "https://far:6443", CertificateAuthority: "far.crt"}
	c.AuthInfos["alice"] = &clientcmdapi.AuthInfo{Token: "secret"}
	c.Contexts["far"] = &clientcmdapi.Context{Cluster: "far", AuthInfo: "alice", Namespace: "x"}
	c.Contexts["alice-here"] = &clientcmdapi.Context{Cluster: "skiff", AuthInfo: "alice"}
	c.Contexts["skiff"].Namespace, c.Contexts["two"].Namespace = "web", "db"
	c.Contexts["skiff"].AuthInfo = "alice"
	c.Clusters["skiff"].ProxyURL = "http://proxy:3128"
	c.CurrentContext = "far"
	edit(c)

	// The CA, the certificate and an address change; a server goes and one comes.
	k = Kubeconfig{CA: []byte("ca2"), Cert: []byte("cert2"), Key: []byte("key2"), Servers: []Named{{"one", "10.0.0.9:6443"}, {"three", "10.0.0.3:6443"}}}
	c = write()
	if far, ctx := c.Clusters["far"], c.Contexts["far"]; far == nil || far.CertificateAuthority != "far.crt" || ctx == nil || ctx.Namespace != "x" || c.AuthInfos["alice"] == nil || c.Contexts["alice-here"] == nil {
		t.Errorf("entries of others are gone: %+v", c)
	}
	if c.CurrentContext != "far" || c.Contexts["skiff"].Namespace != "web" || c.Clusters["skiff"].ProxyURL != "http://proxy:3128" {
		t.Errorf("edits are gone: %+v", c)
	}
	if c.Contexts["skiff"].AuthInfo != "admin" || string(c.AuthInfos["admin"].ClientCertificateData) != "cert2" || string(c.AuthInfos["admin"].ClientKeyData) != "key2" {
		t.Error("the administrator's user is not the cluster's")
	}
	for name, server := range map[string]string{"skiff": "https://10.0.0.9:6443", "one": "https://10.0.0.9:6443", "three": "https://10.0.0.3:6443"} {
		if got := c.Clusters[name]; got == nil || got.Server != server || string(got.CertificateAuthorityData) != "ca2" || c.Contexts[name] == nil {
			t.Errorf("cluster %s: %+v", name, got)
		}
	}
	if c.Clusters["two"] != nil || c.Contexts["two"] != nil {
		t.Error("a server that is no more has its context still")
	}
	if got := OfCluster(c.Clusters["skiff"]); len(got) != 2 || got[1].Address != "10.0.0.3:6443" {
		t.Errorf("servers of the cluster: %v", got)
	}
	// The current context was that of a server that goes.
	c.CurrentContext = "three"
	edit(c)
	k.Servers = k.Servers[:1]
	if c = write(); c.CurrentContext != "skiff" || c.Contexts["three"] != nil {
		t.Errorf("the current context is %s", c.CurrentContext)
	}
	// What means the same is left as it is, down to the comments.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = append([]byte("# mine\n"), b...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	write()
	if now, _ := os.ReadFile(path); !bytes.Equal(now, b) {
		t.Errorf("a file that says all this was written again: %s", now)
	}
	if said.Len() > 0 {
		t.Errorf("said: %s", said.String())
	}
	for name, damage := range map[string]string{"no YAML": "{{{", "cut off": string(b[:len(b)/2]) + "\n\t:", "another kind": "apiVersion: v1\nkind: Pod\n"} {
		said.Reset()
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if c = write(); len(c.Clusters) != 2 || c.CurrentContext != "skiff" || strings.Count(said.String(), "the kubeconfig is damaged") != 1 {
			t.Errorf("%s: %+v; said %q", name, c, said.String())
		}
	}
}
