// Package registrytest runs storages of kinds on a store in memory, for tests:
// the real storage, FSM and codecs, and a log without disks.
package registrytest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	apistorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/scheme"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Log applies every command at once, as an entry of its own.
type Log struct {
	fsm   *fsm.FSM
	mu    sync.Mutex
	index uint64
	fault func(fsm.Command) (before, after error)
}

// SetFault makes proposals fail: with the first error before they are applied,
// with the second afterwards. Nil ends the faults.
func (l *Log) SetFault(f func(fsm.Command) (before, after error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
}

// Propose applies a command.
func (l *Log) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var after error
	if l.fault != nil {
		var before error
		if before, after = l.fault(cmd); before != nil {
			return fsm.Result{}, before
		}
	}
	data, err := fsm.EncodeEntry(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	l.index++
	results, ok := l.fsm.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).([]fsm.Result)
	if !ok || len(results) != 1 {
		return fsm.Result{}, errors.New("apply gave no result")
	}
	if after != nil {
		return fsm.Result{}, after
	}
	return results[0], nil
}

// ReadIndex has nothing to wait for.
func (l *Log) ReadIndex(context.Context) error { return nil }

// Env is a store with storages on it.
type Env struct {
	registry.Options
	Log *Log
	DB  *store.Store
}

// New makes an empty store. Defaults register the defaulting functions of the
// groups under test.
func New(t testing.TB, defaults ...func(*runtime.Scheme) error) *Env {
	t.Helper()
	s, err := scheme.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, add := range defaults {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	db := store.New(store.Config{})
	log := &Log{fsm: fsm.New(db)}
	b, err := storage.New(storage.Config{Store: db, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return &Env{Options: registry.Options{Scheme: s, RESTOptions: &getter{b, s, serializer.NewCodecFactory(s)}}, Log: log, DB: db}
}

type getter struct {
	backend *storage.Backend
	scheme  *runtime.Scheme
	codecs  serializer.CodecFactory
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g *getter) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	gv := schema.GroupVersion{Group: gr.Group, Version: "v1"}
	codec := g.codecs.CodecForVersions(protobuf.NewSerializer(g.scheme, g.scheme), g.codecs.UniversalDeserializer(), gv,
		schema.GroupVersion{Group: gr.Group, Version: runtime.APIVersionInternal})
	c := storagebackend.NewDefaultConfig(storage.KeyPrefix, codec)
	c.EncodeVersioner = gv
	return generic.RESTOptions{StorageConfig: c.ForResource(gr), Decorator: g.storage, EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1, ResourcePrefix: "/" + gr.Resource}, nil
}

func (g *getter) storage(c *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error), newFunc, _ func() runtime.Object,
	_ apistorage.AttrFunc, _ apistorage.IndexerFuncs, _ *cache.Indexers) (apistorage.Interface, factory.DestroyFunc, error) {
	r, err := g.backend.Resource(storage.ResourceConfig{Prefix: prefix, Codec: c.Codec, NewFunc: newFunc})
	return r, func() {}, err
}

// Context is that of a request on resource in namespace, by an administrator.
func Context(namespace string, r schema.GroupVersionResource) context.Context {
	ctx := genericapirequest.WithNamespace(context.Background(), namespace)
	ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{IsResourceRequest: true,
		APIGroup: r.Group, APIVersion: r.Version, Resource: r.Resource, Namespace: namespace})
	return As(ctx, "admin", user.SystemPrivilegedGroup)
}

// As makes the request one of another user.
func As(ctx context.Context, name string, groups ...string) context.Context {
	return genericapirequest.WithUser(ctx, &user.DefaultInfo{Name: name, Groups: groups})
}

// Create defaults obj as decoding does and creates it.
func (e *Env) Create(ctx context.Context, s rest.Storage, obj runtime.Object) (runtime.Object, error) {
	e.Scheme.Default(obj)
	return s.(rest.Creater).Create(ctx, obj, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
}

// Update defaults obj as decoding does and puts it in the place of the object
// of its name.
func (e *Env) Update(ctx context.Context, s rest.Storage, obj runtime.Object) (runtime.Object, error) {
	e.Scheme.Default(obj)
	out, _, err := s.(rest.Updater).Update(ctx, obj.(metav1.Object).GetName(), rest.DefaultUpdatedObjectInfo(obj),
		rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return out, err
}

// Delete deletes the object of that name.
func (e *Env) Delete(ctx context.Context, s rest.Storage, name string) error {
	_, _, err := s.(rest.GracefulDeleter).Delete(ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{})
	return err
}

// Cells gives the row that kubectl shows of obj, with the column names.
func Cells(t testing.TB, s rest.Storage, obj runtime.Object) (columns []string, cells []any) {
	t.Helper()
	table, err := s.(rest.TableConvertor).ConvertToTable(context.Background(), obj, &metav1.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range table.ColumnDefinitions {
		columns = append(columns, c.Name)
	}
	if len(table.Rows) != 1 || len(table.Rows[0].Cells) != len(columns) {
		t.Fatalf("table of %T has rows %v for columns %v", obj, table.Rows, columns)
	}
	return columns, table.Rows[0].Cells
}
