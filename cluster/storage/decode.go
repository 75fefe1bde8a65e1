package storage

import (
	"fmt"
	"maps"
	"reflect"
	"weak"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-sh/skiff/fsm/store"
)

// decoded is the form of a stored version that its readers share. The store's
// slot holds it weakly: watchers and lists that run at the same time decode
// once, and no memory stays in use for objects that nobody reads.
type decoded struct {
	owner *Resource
	obj   runtime.Object
}

// cached returns the shared form of kv if somebody decoded it already.
func (r *Resource) cached(kv *store.KeyValue) runtime.Object {
	if p, ok := kv.Decoded().(weak.Pointer[decoded]); ok {
		if d := p.Value(); d != nil && d.owner == r {
			return d.obj
		}
	}
	return nil
}

// shared returns what kv decodes to. It must not be changed; see share.
func (r *Resource) shared(kv *store.KeyValue) (runtime.Object, error) {
	if obj := r.cached(kv); obj != nil {
		return obj, nil
	}
	obj, err := r.decode(kv, r.newFunc())
	if err != nil {
		return nil, err
	}
	kv.SetDecoded(weak.Make(&decoded{r, obj}))
	return obj, nil
}

// decode decodes kv into into and returns it, with its resourceVersion.
func (r *Resource) decode(kv *store.KeyValue, into runtime.Object) (runtime.Object, error) {
	data, _, err := r.open(kv)
	if err != nil {
		return nil, err
	}
	return r.decodePlain(kv.Key, data, kv.ModRevision, into)
}

// decodePlain decodes what encode has made.
func (r *Resource) decodePlain(key string, data []byte, rev int64, into runtime.Object) (runtime.Object, error) {
	obj, _, err := r.codec.Decode(data, nil, into)
	if err != nil {
		return nil, err
	}
	if obj != into {
		return nil, fmt.Errorf("decode %s: got a new %T instead of filling the given %T", key, obj, into)
	}
	return obj, r.versioner.UpdateObject(obj, uint64(rev))
}

// read sets out to what kv decodes to. Its inner parts may be shared.
func (r *Resource) read(kv *store.KeyValue, out runtime.Object) error {
	if obj := r.cached(kv); obj != nil && assign(out, obj) {
		return nil
	}
	_, err := r.decode(kv, out)
	return err
}

// own returns an object of kv that the caller may change, of out's type.
func (r *Resource) own(kv *store.KeyValue, out runtime.Object) (runtime.Object, error) {
	if obj := r.cached(kv); obj != nil && reflect.TypeOf(obj) == reflect.TypeOf(out) {
		return obj.DeepCopyObject(), nil
	}
	return r.decode(kv, empty(out))
}

// empty is a new object of the same type, and for unstructured objects of the
// same kind.
func empty(like runtime.Object) runtime.Object {
	if u, ok := like.(runtime.Unstructured); ok {
		return u.NewEmptyInstance()
	}
	return reflect.New(reflect.TypeOf(like).Elem()).Interface().(runtime.Object)
}

// assign makes *dst a shallow copy of *src if both are of the same type.
func assign(dst, src runtime.Object) bool {
	if u, ok := src.(*unstructured.Unstructured); ok {
		d, ok := dst.(*unstructured.Unstructured)
		if ok {
			d.Object = shareMap(u.Object)
		}
		return ok
	}
	d, s := reflect.ValueOf(dst), reflect.ValueOf(src)
	if d.Type() != s.Type() || d.Kind() != reflect.Pointer {
		return false
	}
	d.Elem().Set(s.Elem())
	return true
}

// share returns a shallow copy of obj: its type, resourceVersion and other
// top-level fields may be set, what these point to may not be changed.
func share(obj runtime.Object) runtime.Object {
	n := reflect.New(reflect.TypeOf(obj).Elem()).Interface().(runtime.Object)
	assign(n, obj)
	return n
}

// shareMap copies an unstructured object down to its metadata, which is as deep
// as encoders and versioners write.
func shareMap(m map[string]any) map[string]any {
	m = maps.Clone(m)
	if meta, ok := m["metadata"].(map[string]any); ok {
		m["metadata"] = maps.Clone(meta)
	}
	return m
}

// written sets out to obj as it was stored at rev, without decoding what was
// just encoded as data.
func (r *Resource) written(key string, out, obj runtime.Object, data []byte, rev int64) error {
	if !assign(out, obj) {
		_, err := r.decodePlain(key, data, rev, out)
		return err
	}
	return r.versioner.UpdateObject(out, uint64(rev))
}
