package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// ResourceConfig describes how one resource is stored.
type ResourceConfig struct {
	// Prefix of the resource's keys below KeyPrefix, such as "/pods".
	Prefix string
	Codec  runtime.Codec
	// NewFunc makes an empty object; bookmarks and shared decoding need it.
	NewFunc func() runtime.Object
}

// Resource is the storage of one resource, and of one version of it where
// there are several. It implements storage.Interface.
type Resource struct {
	b         *Backend
	prefix    string
	codec     runtime.Codec
	newFunc   func() runtime.Object
	versioner storage.APIObjectVersioner
	sealer    Sealer      // nil: the stored form is the encoded one
	sizes     atomic.Bool // EnableResourceSizeEstimation was called
}

var _ storage.Interface = (*Resource)(nil)

// Resource makes the storage of one resource.
func (b *Backend) Resource(c ResourceConfig) (*Resource, error) {
	if len(c.Prefix) < 2 || c.Prefix[0] != '/' {
		return nil, fmt.Errorf("storage: resource prefix %q must be a slash and a name", c.Prefix)
	}
	if c.Codec == nil || c.NewFunc == nil {
		return nil, fmt.Errorf("storage of %s: Codec and NewFunc are needed", c.Prefix)
	}
	r := &Resource{b: b, prefix: c.Prefix, codec: c.Codec, newFunc: c.NewFunc}
	if slices.Contains(sealedResources, "/"+strings.Trim(c.Prefix, "/")) {
		r.sealer = b.sealer
	}
	return r, nil
}

// Versioner implements storage.Interface.
func (r *Resource) Versioner() storage.Versioner { return r.versioner }

// Stats implements storage.Interface.
func (r *Resource) Stats(context.Context) (storage.Stats, error) {
	prefix := KeyPrefix + strings.TrimSuffix(r.prefix, "/") + "/"
	v := r.b.store.View()
	s := storage.Stats{ObjectCount: int64(v.Count(prefix))}
	if r.sizes.Load() && s.ObjectCount > 0 {
		var total int64
		v.Ascend(prefix, "", func(kv *store.KeyValue) bool { total += int64(len(kv.Value)); return true })
		s.EstimatedAverageObjectSizeBytes = total / s.ObjectCount
	}
	return s, nil
}

// EnableResourceSizeEstimation makes Stats give the average size. The keys are
// not needed: the sizes are read where the objects are.
func (r *Resource) EnableResourceSizeEstimation(keys storage.KeysFunc) error {
	if keys == nil {
		return errors.New("KeysFunc cannot be nil")
	}
	if r.sizes.Swap(true) {
		return errors.New("resourceSizeEstimator already enabled")
	}
	return nil
}

// ReadinessCheck implements storage.Interface: the local store can be read from
// the start, and whether the log works is the server's readiness.
func (r *Resource) ReadinessCheck() error { return nil }

// RequestWatchProgress makes every watch that may do so report how far it is.
func (r *Resource) RequestWatchProgress(context.Context) error {
	r.b.bookmarks()
	return nil
}

// GetCurrentResourceVersion implements storage.Interface; it is linearizable.
func (r *Resource) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	if err := r.b.readIndex(ctx); err != nil {
		return 0, err
	}
	return uint64(r.b.store.Revision()), nil
}

// CompactRevision implements storage.Interface.
func (r *Resource) CompactRevision() int64 { return r.b.store.CompactRevision() }

// key is the store's key for one of the library's.
func (r *Resource) key(key string, recursive bool) (string, error) {
	key, err := storage.PrepareKey(r.prefix, key, recursive)
	if err != nil {
		return "", err
	}
	return KeyPrefix + "/" + strings.TrimPrefix(key, "/"), nil
}

// atLeast makes the local store as new as a reader with this resourceVersion
// asks for: "" is everything acknowledged, "0" is whatever is here once it was
// current.
func (r *Resource) atLeast(ctx context.Context, resourceVersion string) error {
	if resourceVersion == "" {
		return r.b.readIndex(ctx)
	}
	rev, err := r.versioner.ParseResourceVersion(resourceVersion)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", err))
	}
	return r.reach(ctx, int64(rev))
}

// reach makes sure that the local store is at rev or later. Revisions are given
// out only after they were acknowledged, so one that is still ahead after a read
// index was never given out by this cluster.
func (r *Resource) reach(ctx context.Context, rev int64) error {
	if err := r.b.awaitReady(ctx); err != nil {
		return err
	}
	if rev <= r.b.store.Revision() {
		return nil
	}
	if err := r.b.readIndex(ctx); err != nil {
		return err
	}
	if have := r.b.store.Revision(); rev > have {
		return storage.NewTooLargeResourceVersionError(uint64(rev), uint64(have), 1)
	}
	return nil
}

// propose sends a command to the log. Whether it was refused is in the result.
func (b *Backend) propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error) {
	res, err := b.log.Propose(ctx, cmd)
	return res, logError(err, "write")
}
