package rootca

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func TestPublishesAndRepairs(t *testing.T) {
	ctx := context.Background()
	c := controllertest.New(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}},
		// Left by an older CA.
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: mapName}, Data: map[string]string{mapKey: "OLD"}},
	)
	ctl, err := New(Config{Config: c.Config, CA: func() []byte { return []byte("CERT") }})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	published := func(ns string) func() string {
		return func() string {
			m, err := c.Client.CoreV1().ConfigMaps(ns).Get(ctx, mapName, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			if m.Data[mapKey] != "CERT" || len(m.Data) != 1 {
				return "data " + m.Data[mapKey]
			}
			return ""
		}
	}
	controllertest.Eventually(t, published("a"))
	controllertest.Eventually(t, published("b"))

	m, _ := c.Client.CoreV1().ConfigMaps("a").Get(ctx, mapName, metav1.GetOptions{})
	m.Data["more"] = "x"
	if _, err := c.Client.CoreV1().ConfigMaps("a").Update(ctx, m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, published("a"))
	if err := c.Client.CoreV1().ConfigMaps("a").Delete(ctx, mapName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, published("a"))
	c.Settles(t, 50*time.Millisecond)
}

func TestConfig(t *testing.T) {
	c := controllertest.New(t)
	if _, err := New(Config{Config: c.Config}); err == nil {
		t.Error("accepted without a certificate")
	}
}
