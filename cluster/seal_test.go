package cluster

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/trust"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// TestNothingSecretIsReadableAtRest looks for the plain text of a Secret and of
// the cluster's keys in every file of the data directory that is not a key file,
// and in a snapshot; then it restores the snapshot.
func TestNothingSecretIsReadableAtRest(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	ctx := t.Context()
	const text = "correct-horse-battery-staple"
	made, err := s.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"password": text}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	control := "this-one-is-not-secret-at-all"
	if _, err := s.client.CoreV1().ConfigMaps("default").Create(ctx, configMap("c", map[string]string{"a": control}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "keys in the state", func() (bool, error) { _, ok := s.state.View().Get(trust.Key); return ok, nil })
	if _, err := s.client.CoreV1().Secrets("default").Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if _, err := backup.Save(ctx, s.Snapshot, snapshot, backup.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	files := s.PKI().Files()
	clusterKey := s.PKI().ClusterKey()
	s.stop()

	forbidden := map[string][]byte{"the secret": []byte(text), "the secret in base64": []byte(base64.StdEncoding.EncodeToString([]byte(text)))}
	for _, name := range []string{pki.CAKeyFile, pki.SAKeyFile, seal.KeyFile} {
		lines := bytes.Split(files[name], []byte("\n"))
		forbidden[name] = lines[len(lines)-3][:40] // of the key itself
	}
	_, _, gossip := s.trust.Document()
	forbidden["the gossip key"] = []byte(base64.StdEncoding.EncodeToString(gossip[0]))
	seen := 0
	look := func(path string, b []byte) {
		for what, plain := range forbidden {
			if bytes.Contains(b, plain) {
				t.Errorf("%s holds %s", path, what)
			}
		}
		if bytes.Contains(b, []byte(control)) {
			seen++
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		switch rel, _ := filepath.Rel(dir, path); {
		case filepath.Dir(rel) == "pki", rel == "cluster.json":
			if st, err := d.Info(); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s can be read by others: %v", rel, err)
			}
			return nil
		}
		b, err := os.ReadFile(path)
		look(path, b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Error("not even a ConfigMap was found: the search finds nothing")
	}
	found := 0
	err = readSnapshot(t, snapshot, func(key string, value []byte) {
		found++
		look("snapshot: "+key, value)
	})
	if err != nil || found == 0 {
		t.Fatalf("read %d keys of the snapshot: %v", found, err)
	}

	// Without the key it is of no use, with it it is the cluster.
	host := filepath.Join(t.TempDir(), "host")
	if _, err := backup.Restore(ctx, snapshot, host, backup.RestoreOptions{}); !errors.Is(err, backup.ErrSealed) {
		t.Errorf("restored without the key: %v", err)
	}
	_, err = backup.Restore(ctx, snapshot, host, backup.RestoreOptions{Keys: func(state map[string][]byte) (map[string][]byte, error) {
		files, err := trust.Recover(state, clusterKey)
		if err != nil {
			return nil, err
		}
		return pki.OnDisk(files, clusterKey)
	}})
	if err != nil {
		t.Fatal(err)
	}
	again := startServer(t, testConfig(host))
	got, err := again.client.CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{})
	if err != nil || string(got.Data["password"]) != text {
		t.Errorf("after the restore: %q, %v", got.Data["password"], err)
	}
}

func TestCAIsReplacedUnderRunningClients(t *testing.T) {
	s := newServer(t)
	ctx := t.Context()
	eventually(t, "keys in the state", func() (bool, error) { g, _, _ := s.trust.Document(); return g != 0, nil })
	w, err := s.client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	old := s.PKI().CACertPEM()
	if err := s.trust.RotateCA(ctx, false); err != nil {
		t.Fatal(err)
	}
	phase := func(want trust.Phase) func() (bool, error) {
		return func() (bool, error) {
			st, err := s.trust.Status(ctx)
			if want == "" {
				return err == nil && st.CARotation == nil && len(st.WaitingOn) == 0, err
			}
			return err == nil && st.CARotation != nil && st.CARotation.Phase == want, err
		}
	}
	eventually(t, "overlap", phase(trust.PhaseOverlap))
	if bytes.Equal(s.PKI().CACertPEM(), old) || !bytes.Contains(s.PKI().Bundle(), old) {
		t.Error("not both CAs are trusted")
	}
	// A client that only knows the old CA, with a certificate of it, on a new
	// connection.
	fresh := func() error {
		c := *s.config
		c.Dial = nil
		c.UserAgent = t.Name() + string(s.PKI().CACertPEM()[60:70]) // another transport
		client, err := kubernetes.NewForConfig(&c)
		if err != nil {
			return err
		}
		_, err = client.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
		return err
	}
	s.config.TLSClientConfig.NextProtos = []string{"http/1.1"} // no sharing of connections with s.client
	if err := fresh(); err != nil {
		t.Errorf("in the overlap: %v", err)
	}
	if err := s.trust.RotateCA(ctx, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "finished", phase(""))
	if err := fresh(); err == nil {
		t.Error("a client with the dropped CA still gets in")
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.KubeconfigPath())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server's kubeconfig works", func() (bool, error) {
		if config, err = clientcmd.BuildConfigFromFlags("", s.KubeconfigPath()); err != nil {
			return false, err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return false, err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		m, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
		return err == nil && m.Data["client-ca-file"] == string(s.PKI().Bundle()), err
	})
}

// readSnapshot gives every key of a snapshot file.
func readSnapshot(t *testing.T, path string, each func(key string, value []byte)) error {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := fsm.NewReader(f)
	for err == nil {
		var kv *store.KeyValue
		if kv, err = r.Next(); err == nil {
			each(kv.Key, kv.Value)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
