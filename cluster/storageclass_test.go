package cluster

import (
	"net"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

// A cluster starts with a default storage class. Who deletes it means it.
func TestDefaultStorageClassIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, testConfig(dir))
	ctx := t.Context()
	eventually(t, "class", func() (bool, error) {
		class, err := s.client.StorageV1().StorageClasses().Get(ctx, localpath.ClassName, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if !storageapi.IsDefault(class) || class.Provisioner != localpath.Provisioner {
			t.Fatalf("class %+v", class)
		}
		_, noted := s.state.View().Get(storageClassKey)
		return noted, nil
	})
	if err := s.client.StorageV1().StorageClasses().Delete(ctx, localpath.ClassName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	c := testConfig(dir)
	c.Port, c.RaftPort, c.GossipPort, c.Listen = s.cfg.Port, s.cfg.RaftPort, s.cfg.GossipPort, net.Listen
	s = startServer(t, c)
	eventually(t, "quiet", quiet(s))
	if _, err := s.client.StorageV1().StorageClasses().Get(ctx, localpath.ClassName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a class that was deleted is back: %v", err)
	}
}
