package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Create implements storage.Interface. out becomes a shallow copy of obj, which
// the caller gives up.
func (r *Resource) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	key, err := r.key(key, false)
	if err != nil {
		return err
	}
	if v, err := r.versioner.ObjectResourceVersion(obj); err == nil && v != 0 {
		return storage.ErrResourceVersionSetOnCreate
	}
	data, err := r.encode(obj)
	if err != nil {
		return err
	}
	stored, err := r.seal(ctx, key, data)
	if err != nil {
		return err
	}
	expires := r.b.expiresAt(ttl)
	res, err := r.put(ctx, key, stored, 0, expires)
	switch {
	case err != nil:
		return err
	case res.Err != nil:
		return storage.NewKeyExistsError(key, 0)
	}
	if res.Revision, err = r.keep(ctx, key, data, stored, expires, res.Revision); err != nil || out == nil {
		return err
	}
	return r.written(key, out, obj, data, res.Revision)
}

// encode gives the plain form in which obj is stored and clears its
// resourceVersion.
func (r *Resource) encode(obj runtime.Object) ([]byte, error) {
	if err := r.versioner.PrepareObjectForStorage(obj); err != nil {
		return nil, fmt.Errorf("prepare object for storage: %w", err)
	}
	return runtime.Encode(r.codec, obj)
}

func (r *Resource) put(ctx context.Context, key string, data []byte, expect, expires int64) (fsm.Result, error) {
	res, err := r.b.propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: data, Expect: expect, Expires: expires}))
	if expires != 0 && err == nil {
		r.b.wakeExpire()
	}
	return res, err
}

// attempt is what a write knows of the object it is about.
type attempt struct {
	kv *store.KeyValue // nil: there is none
	// current: kv was the newest version at some moment after the write began,
	// so what follows from it may be answered. Else the local copy may lag.
	current bool
}

// refresh reads the newest version and tells whether it differs.
func (r *Resource) refresh(ctx context.Context, key string, a *attempt) (changed bool, err error) {
	if err := r.b.readIndex(ctx); err != nil {
		return false, err
	}
	old := a.kv
	a.kv, a.current = r.b.get(key), true
	return revision(old) != revision(a.kv), nil
}

func revision(kv *store.KeyValue) int64 {
	if kv == nil {
		return 0
	}
	return kv.ModRevision
}

// again decides, after a write failed with err on what a knows, whether to try
// again with newer knowledge.
func (r *Resource) again(ctx context.Context, key string, a *attempt, err error) error {
	if a.current {
		return err
	}
	changed, rerr := r.refresh(ctx, key, a)
	if rerr != nil {
		return rerr
	}
	if !changed {
		return err
	}
	return nil
}

// Delete implements storage.Interface. The suggested object saves decoding when
// it is the newest version.
func (r *Resource) Delete(ctx context.Context, key string, out runtime.Object, pre *storage.Preconditions,
	validate storage.ValidateObjectFunc, suggestion runtime.Object, opts storage.DeleteOptions) error {
	key, err := r.key(key, false)
	if err != nil {
		return err
	}
	if _, err := conversion.EnforcePtr(out); err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	if opts.ExpectTransformOrDecodeError {
		return storage.NewInternalError(errors.New("deleting objects that cannot be decoded is not supported"))
	}
	a := attempt{kv: r.b.get(key)}
	for {
		obj, err := r.deletable(ctx, key, out, a.kv, pre, validate, suggestion)
		if err != nil {
			if err := r.again(ctx, key, &a, err); err != nil {
				return err
			}
			continue
		}
		res, err := r.b.propose(ctx, fsm.One(fsm.Op{Type: fsm.Delete, Key: key, Expect: a.kv.ModRevision}))
		if err != nil {
			return err
		}
		if res.Err != nil {
			a = attempt{res.Current, true}
			continue
		}
		if !assign(out, obj) {
			if _, err := r.decode(a.kv, out); err != nil {
				return err
			}
		}
		return r.versioner.UpdateObject(out, uint64(res.Revision))
	}
}

// deletable returns the object to be deleted, or why it may not be.
func (r *Resource) deletable(ctx context.Context, key string, out runtime.Object, kv *store.KeyValue, pre *storage.Preconditions,
	validate storage.ValidateObjectFunc, suggestion runtime.Object) (runtime.Object, error) {
	if kv == nil {
		return nil, storage.NewKeyNotFoundError(key, 0)
	}
	obj, err := r.suggested(kv, out, suggestion)
	if err != nil {
		return nil, err
	}
	if err := pre.Check(key, obj); err != nil {
		return nil, err
	}
	return obj, validate(ctx, obj)
}

// suggested returns an object of kv that may be changed: the caller's
// suggestion if it is the same version.
func (r *Resource) suggested(kv *store.KeyValue, out, suggestion runtime.Object) (runtime.Object, error) {
	if suggestion != nil {
		if v, err := r.versioner.ObjectResourceVersion(suggestion); err == nil && int64(v) == kv.ModRevision {
			return suggestion, nil
		}
	}
	return r.own(kv, out)
}

// GuaranteedUpdate implements storage.Interface. The first attempt is made on
// the local copy: if it is stale the log refuses what was decided on it, and
// errors and no-ops that follow from it are checked against the newest version
// before they are answered.
func (r *Resource) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	pre *storage.Preconditions, try storage.UpdateFunc, suggestion runtime.Object) error {
	key, err := r.key(key, false)
	if err != nil {
		return err
	}
	if _, err := conversion.EnforcePtr(out); err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	a := attempt{kv: r.b.get(key)}
	for {
		obj, data, expires, err := r.update(key, out, a.kv, ignoreNotFound, pre, try, suggestion)
		if err != nil {
			if err := r.again(ctx, key, &a, err); err != nil {
				return err
			}
			continue
		}
		same, err := r.same(a.kv, data)
		if err != nil {
			return err
		}
		if same {
			if !a.current {
				changed, err := r.refresh(ctx, key, &a)
				if err != nil {
					return err
				}
				if changed {
					continue
				}
			}
			return r.written(key, out, obj, data, a.kv.ModRevision)
		}
		stored, err := r.seal(ctx, key, data)
		if err != nil {
			return err
		}
		res, err := r.put(ctx, key, stored, revision(a.kv), expires)
		if err != nil {
			return err
		}
		if res.Err != nil {
			a = attempt{res.Current, true}
			continue
		}
		if a.kv == nil {
			if res.Revision, err = r.keep(ctx, key, data, stored, expires, res.Revision); err != nil {
				return err
			}
		}
		return r.written(key, out, obj, data, res.Revision)
	}
}

// update runs try on kv and returns the new object, its encoded form and its
// expiry.
func (r *Resource) update(key string, out runtime.Object, kv *store.KeyValue, ignoreNotFound bool, pre *storage.Preconditions,
	try storage.UpdateFunc, suggestion runtime.Object) (obj runtime.Object, data []byte, expires int64, err error) {
	var meta storage.ResponseMeta
	if kv == nil {
		if !ignoreNotFound {
			return nil, nil, 0, storage.NewKeyNotFoundError(key, 0)
		}
		obj = empty(out)
		if err := runtime.SetZeroValue(obj); err != nil {
			return nil, nil, 0, err
		}
	} else {
		if obj, err = r.suggested(kv, out, suggestion); err != nil {
			return nil, nil, 0, err
		}
		meta.ResourceVersion = uint64(kv.ModRevision)
		if expires = kv.Expires; expires != 0 {
			meta.TTL = expires - time.Now().Unix()
		}
	}
	if err := pre.Check(key, obj); err != nil {
		return nil, nil, 0, err
	}
	obj, ttl, err := try(obj, meta)
	if err != nil {
		return nil, nil, 0, err
	}
	if ttl != nil {
		expires = r.b.expiresAt(*ttl)
	}
	data, err = r.encode(obj)
	return obj, data, expires, err
}
