package servers

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func TestKubeconfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	k := Kubeconfig{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key"), Servers: []Named{{"two", "10.0.0.2:6443"}, {"one", "10.0.0.1:6443"}}}
	if err := k.Write(path); err != nil {
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
	if err := k.Write(path); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1e9, 0)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if err := k.Write(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("an unchanged file was written again: %v, %v", info.ModTime(), err)
	}
	if err := (Kubeconfig{}).Write(path); err == nil {
		t.Error("a kubeconfig without servers was written")
	}
}
