package storage

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// TestNothingIsReadBeforeTheStoreHasCaughtUp: a server that starts without its
// cluster has an old state, or none. Nodes would end what is missing in it.
func TestNothingIsReadBeforeTheStoreHasCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := store.New(store.Config{})
		ready := make(chan struct{})
		b, err := New(Config{Store: db, Log: &memoryLog{fsm: fsm.New(db)}, Ready: ready})
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.Resource(ResourceConfig{Prefix: "/pods/", Codec: exampleCodec(t), NewFunc: func() runtime.Object { return &example.Pod{} }})
		if err != nil {
			t.Fatal(err)
		}
		whatever := storage.ListOptions{ResourceVersion: "0", Recursive: true, Predicate: storage.Everything}
		reads := map[string]func(context.Context) error{
			"list": func(ctx context.Context) error { return r.GetList(ctx, "/pods", whatever, &example.PodList{}) },
			"get": func(ctx context.Context) error {
				return r.Get(ctx, "/pods/ns/p", storage.GetOptions{ResourceVersion: "0", IgnoreNotFound: true}, &example.Pod{})
			},
			"watch": func(ctx context.Context) error {
				w, err := r.Watch(ctx, "/pods", whatever)
				if err == nil {
					w.Stop()
				}
				return err
			},
		}
		for name, read := range reads {
			if err := read(t.Context()); !apierrors.IsServiceUnavailable(err) {
				t.Errorf("%s before the store has caught up: %v", name, err)
			}
		}
		time.AfterFunc(time.Second, func() { close(ready) })
		for name, read := range reads {
			if err := read(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		synctest.Wait()
	})
}
