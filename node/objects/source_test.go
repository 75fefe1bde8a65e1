package objects

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestHoldFollowsObject(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client := fake.NewSimpleClientset()
	s := New(Config{Client: client, Logger: slog.New(slog.DiscardHandler), Linger: time.Millisecond})
	defer s.Close()

	changed := make(chan struct{}, 100)
	ref := Ref{ConfigMap, "default", "settings"}
	release := s.Hold([]Ref{ref}, func() { changed <- struct{}{} })
	if _, err := s.ConfigMap(ctx, "default", "settings"); !apierrors.IsNotFound(err) || err.Error() != `configmap "settings" not found` {
		t.Fatalf("missing object: %v", err)
	}
	await := func(want string) {
		t.Helper()
		for {
			cm, err := s.ConfigMap(ctx, "default", "settings")
			if err == nil && cm.Data["k"] == want {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("never saw %q: %v %v", want, cm, err)
			}
		}
	}
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default"}, Data: map[string]string{"k": "1"}}
	// The fake client loses what happens between its list and its watch.
	for len(client.Actions()) < 2 {
		time.Sleep(time.Millisecond)
	}
	if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("1")
	cm = cm.DeepCopy()
	cm.Data["k"] = "2"
	if _, err := client.CoreV1().ConfigMaps("default").Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("2")

	release()
	release() // twice is harmless
	for {
		s.mu.Lock()
		n := len(s.watches)
		s.mu.Unlock()
		if n == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the watch outlived its last user")
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := s.ConfigMap(ctx, "default", "settings"); err == nil {
		t.Fatal("an object nobody holds was returned")
	}
}
