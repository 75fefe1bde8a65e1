package serviceaccount

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func TestEveryNamespaceHasDefaultAccount(t *testing.T) {
	now := metav1.Now()
	c := controllertest.New(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "leaving", DeletionTimestamp: &now, Finalizers: []string{"x"}}},
	)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	exists := func(ns string) func() string {
		return func() string {
			_, err := c.Client.CoreV1().ServiceAccounts(ns).Get(context.Background(), "default", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			return ""
		}
	}
	controllertest.Eventually(t, exists("a"))
	if err := c.Client.CoreV1().ServiceAccounts("a").Delete(context.Background(), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, exists("a"))
	c.Settles(t, 50*time.Millisecond)
	if exists("leaving")() == "" {
		t.Error("account made in a namespace that is being deleted")
	}
}
