package cluster

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBuiltInServicesComeBack(t *testing.T) {
	s := newServer(t)
	ctx := context.Background()
	for ns, name := range map[string]string{"default": "kubernetes", "kube-system": "kube-dns"} {
		services := s.client.CoreV1().Services(ns)
		var before *corev1.Service
		eventually(t, name+" exists", func() (_ bool, err error) {
			before, err = services.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil, err
		})
		if err := services.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" is back at its address", func() (bool, error) {
			after, err := services.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil && after.UID != before.UID && after.Spec.ClusterIP == before.Spec.ClusterIP, err
		})
	}
}
