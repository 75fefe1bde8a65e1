package storage

import (
	"bytes"
	"context"

	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/skiff-sh/skiff/fsm/store"
)

// sealedResources are the prefixes of what Config.Sealer seals.
var sealedResources = []string{"/secrets"}

// SealedPrefixes are the prefixes of the keys whose values are sealed.
func SealedPrefixes() (out []string) {
	for _, p := range sealedResources {
		out = append(out, KeyPrefix+p+"/")
	}
	return out
}

// Sealer seals stored forms; cluster/seal has one. The data context is the key
// in the store, so that a value opens under its own key only.
type Sealer interface {
	value.Transformer
	// Lost says that nobody will be able to open what was just stored.
	Lost(stored []byte) bool
}

// seal gives the stored form of an encoded object.
func (r *Resource) seal(ctx context.Context, key string, data []byte) ([]byte, error) {
	if r.sealer == nil {
		return data, nil
	}
	stored, err := r.sealer.TransformToStorage(ctx, data, value.DefaultContext(key))
	if err != nil {
		return nil, errors.NewServiceUnavailable("secrets cannot be sealed now: " + err.Error())
	}
	return stored, nil
}

// open gives the encoded form of what is stored; stale says that it should be
// written again in any case.
func (r *Resource) open(kv *store.KeyValue) (data []byte, stale bool, err error) {
	if r.sealer == nil {
		return kv.Value, false, nil
	}
	return r.sealer.TransformFromStorage(context.Background(), kv.Value, value.DefaultContext(kv.Key))
}

// same says whether to store data would change nothing.
func (r *Resource) same(kv *store.KeyValue, data []byte) (bool, error) {
	if kv == nil {
		return false, nil
	}
	have, stale, err := r.open(kv)
	return err == nil && !stale && bytes.Equal(data, have), err
}

// keep writes once more what was created with a data key that had just been
// dropped. An update can't be: its version would have been rewritten before.
func (r *Resource) keep(ctx context.Context, key string, data, stored []byte, expires, rev int64) (int64, error) {
	for r.sealer != nil && (rev == 0 || r.sealer.Lost(stored)) {
		var err error
		if stored, err = r.seal(ctx, key, data); err != nil {
			return rev, err
		}
		res, err := r.put(ctx, key, stored, rev, expires)
		switch {
		case err != nil:
			return rev, err
		case res.Err == nil:
			rev = res.Revision
		case res.Current != nil:
			return res.Current.ModRevision, nil // whoever has written it since could read it
		default:
			rev = 0 // it was removed because nobody could read it
		}
	}
	return rev, nil
}
