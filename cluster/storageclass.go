package cluster

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// storageClassKey tells that the cluster has got its default storage class once.
const storageClassKey = "/skiff/storage-class"

// ensureStorageClass gives the cluster its default storage class, once: who
// changes or deletes it means it.
func (s *Server) ensureStorageClass(ctx context.Context, client kubernetes.Interface) error {
	if _, ok := s.state.View().Get(storageClassKey); ok {
		return nil
	}
	_, err := client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: localpath.ClassName, Annotations: map[string]string{storageapi.DefaultAnnotation: "true"}},
		Provisioner:       localpath.Provisioner,
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create storage class %s: %w", localpath.ClassName, err)
	}
	r, err := s.node.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: storageClassKey, Value: []byte("{}")}))
	if err = errors.Join(err, r.Err); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("note that storage class %s was made: %w", localpath.ClassName, err)
	}
	return nil
}
