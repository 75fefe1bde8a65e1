package storage

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Get implements storage.Interface.
func (r *Resource) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	key, err := r.key(key, false)
	if err != nil {
		return err
	}
	if err := r.atLeast(ctx, opts.ResourceVersion); err != nil {
		return err
	}
	kv := r.b.get(key)
	if kv == nil {
		if opts.IgnoreNotFound {
			return runtime.SetZeroValue(out)
		}
		return storage.NewKeyNotFoundError(key, 0)
	}
	return r.read(kv, out)
}

// GetList implements storage.Interface. All chunks of a list are read at the
// revision of the first.
func (r *Resource) GetList(ctx context.Context, key string, opts storage.ListOptions, listObj runtime.Object) error {
	prefix, err := r.key(key, opts.Recursive)
	if err != nil {
		return err
	}
	items, err := itemsOf(listObj)
	if err != nil {
		return err
	}
	rev, from, err := storage.ValidateListOptions(prefix, r.versioner, opts)
	if err != nil {
		return err
	}
	view, err := r.listView(ctx, prefix, rev, from, opts)
	if err != nil {
		return err
	}
	p := page{r: r, pred: opts.Predicate, items: items}
	count := 0
	if opts.Recursive {
		count = view.CountFrom(prefix, max(prefix, from))
		if opts.Predicate.Empty() {
			p.grow(count)
		}
		view.Ascend(prefix, from, func(kv *store.KeyValue) bool { return p.add(ctx, kv) })
	} else if kv, ok := view.Get(prefix); ok {
		count = 1
		p.add(ctx, kv)
	}
	if errors.Is(p.err, seal.ErrKeyGone) && rev != 0 {
		return apierrors.NewResourceExpired(listTooOld)
	}
	if p.err != nil {
		return p.err
	}
	if items.IsNil() {
		items.Set(reflect.MakeSlice(items.Type(), 0, 0))
	}
	token, remaining, err := storage.PrepareContinueToken(p.last, prefix, view.Revision(), int64(count), p.more, opts)
	if err != nil {
		return err
	}
	return r.versioner.UpdateList(listObj, uint64(view.Revision()), token, remaining)
}

// listView picks the state that a list is to be read from; rev is its exact
// revision, or 0.
func (r *Resource) listView(ctx context.Context, prefix string, rev int64, from string, opts storage.ListOptions) (*store.View, error) {
	if rev == 0 {
		if err := r.atLeast(ctx, opts.ResourceVersion); err != nil {
			return nil, err
		}
		return r.b.store.View(), nil
	}
	if err := r.reach(ctx, rev); err != nil {
		return nil, err
	}
	view, err := r.b.store.ViewAt(rev)
	switch {
	case errors.Is(err, store.ErrCompacted) && from != "":
		return nil, continueExpired(from, prefix)
	case errors.Is(err, store.ErrCompacted):
		return nil, apierrors.NewResourceExpired(listTooOld)
	}
	return view, err
}

// page gathers the items of one answer.
type page struct {
	r     *Resource
	pred  storage.SelectionPredicate
	items reflect.Value

	last string // the last key that was looked at
	more bool   // there are keys after it
	seen int
	err  error
}

// checkEvery is how many keys are looked at between looks at the context.
const checkEvery = 256

// add takes one key in, if it matches; false ends the walk.
func (p *page) add(ctx context.Context, kv *store.KeyValue) bool {
	if p.pred.Limit > 0 && int64(p.items.Len()) >= p.pred.Limit {
		p.more = true
		return false
	}
	if p.seen++; p.seen%checkEvery == 0 && ctx.Err() != nil {
		p.err = storage.NewTimeoutError(kv.Key, "request did not complete within requested timeout")
		return false
	}
	p.last = kv.Key
	obj, err := p.r.shared(kv)
	if err != nil {
		p.err = err
		return false
	}
	if ok, err := p.pred.Matches(obj); err == nil && ok {
		p.items.Set(reflect.Append(p.items, listItem(obj)))
	}
	return true
}

// grow makes room for what an unfiltered list will hold.
func (p *page) grow(count int) {
	if p.pred.Limit > 0 {
		count = min(count, int(p.pred.Limit))
	}
	if count > p.items.Cap() {
		p.items.Set(reflect.MakeSlice(p.items.Type(), 0, count))
	}
}

// itemsOf is the slice of a list object.
func itemsOf(listObj runtime.Object) (reflect.Value, error) {
	ptr, err := meta.GetItemsPtr(listObj)
	if err != nil {
		return reflect.Value{}, err
	}
	v, err := conversion.EnforcePtr(ptr)
	if err != nil || v.Kind() != reflect.Slice {
		return reflect.Value{}, fmt.Errorf("items of %T are not a slice: %w", listObj, err)
	}
	return v, nil
}

// listItem is a shallow copy of obj, which appending makes for all but
// unstructured objects.
func listItem(obj runtime.Object) reflect.Value {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		obj = share(u)
	}
	return reflect.ValueOf(obj).Elem()
}
