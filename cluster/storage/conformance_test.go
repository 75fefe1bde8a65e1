package storage

import (
	"context"
	"io"
	"strconv"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/features"
	apistorage "k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// The library's own tests of a storage.Interface. Left out are those of
// encryption at rest and of deleting objects that cannot be decoded, which this
// storage does not have, and those that count an etcd client's requests.

func TestConformance(t *testing.T) {
	type run func(context.Context, *testing.T, apistorage.Interface)
	for name, test := range map[string]run{
		"CreateWithTTL":                         storagetesting.RunTestCreateWithTTL,
		"CreateWithKeyExist":                    storagetesting.RunTestCreateWithKeyExist,
		"Get":                                   storagetesting.RunTestGet,
		"UnconditionalDelete":                   storagetesting.RunTestUnconditionalDelete,
		"ConditionalDelete":                     storagetesting.RunTestConditionalDelete,
		"DeleteWithSuggestion":                  storagetesting.RunTestDeleteWithSuggestion,
		"DeleteWithSuggestionAndConflict":       storagetesting.RunTestDeleteWithSuggestionAndConflict,
		"DeleteWithSuggestionOfDeletedObject":   storagetesting.RunTestDeleteWithSuggestionOfDeletedObject,
		"ValidateDeletionWithSuggestion":        storagetesting.RunTestValidateDeletionWithSuggestion,
		"ValidateDeletionWithOnlySuggestion":    storagetesting.RunTestValidateDeletionWithOnlySuggestionValid,
		"DeleteWithConflict":                    storagetesting.RunTestDeleteWithConflict,
		"PreconditionalDeleteWithSuggestion":    storagetesting.RunTestPreconditionalDeleteWithSuggestion,
		"PreconditionalDeleteOnlySuggestion":    storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass,
		"ListPaging":                            storagetesting.RunTestListPaging,
		"GetListRecursivePrefix":                storagetesting.RunTestGetListRecursivePrefix,
		"KeySchema":                             storagetesting.RunTestKeySchema,
		"NamespaceScopedList":                   storagetesting.RunTestNamespaceScopedList,
		"GuaranteedUpdateWithTTL":               storagetesting.RunTestGuaranteedUpdateWithTTL,
		"GuaranteedUpdateWithConflict":          storagetesting.RunTestGuaranteedUpdateWithConflict,
		"GuaranteedUpdateSuggestionAndConflict": storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict,
		"Watch":                                 storagetesting.RunTestWatch,
		"ClusterScopedWatch":                    storagetesting.RunTestClusterScopedWatch,
		"NamespaceScopedWatch":                  storagetesting.RunTestNamespaceScopedWatch,
		"DeleteTriggerWatch":                    storagetesting.RunTestDeleteTriggerWatch,
		"WatchFromNonZero":                      storagetesting.RunTestWatchFromNonZero,
		"DelayedWatchDelivery":                  storagetesting.RunTestDelayedWatchDelivery,
		"WatchContextCancel":                    storagetesting.RunTestWatchContextCancel,
		"WatcherTimeout":                        storagetesting.RunTestWatcherTimeout,
		"WatchDeleteEventObjectHaveLatestRV":    storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV,
		"WatchInitializationSignal":             storagetesting.RunTestWatchInitializationSignal,
		"SendInitialEventsCompatibility":        storagetesting.RunSendInitialEventsBackwardCompatibility,
		"WatchSemantics":                        storagetesting.RunWatchSemantics,
		"WatchSemanticInitialEventsExtended":    storagetesting.RunWatchSemanticInitialEventsExtended,
		"WatchListMatchSingle":                  storagetesting.RunWatchListMatchSingle,
	} {
		t.Run(name, func(t *testing.T) {
			test(context.Background(), t, newFixture(t, fixtureConfig{}))
		})
	}
}

func TestConformanceCreate(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	storagetesting.RunTestCreate(context.Background(), t, f, f.checkStored)
}

// checkStored verifies that what is in the store has no resourceVersion.
func (f *fixture) checkStored(_ context.Context, t *testing.T, key string) {
	t.Helper()
	kv, ok := f.store.View().Get(KeyPrefix + key)
	if !ok {
		t.Fatalf("nothing is stored at %s", key)
	}
	pod := &example.Pod{}
	if _, _, err := f.codec.Decode(kv.Value, nil, pod); err != nil {
		t.Fatal(err)
	}
	if pod.ResourceVersion != "" || pod.SelfLink != "" {
		t.Errorf("stored object has resourceVersion %q, selfLink %q", pod.ResourceVersion, pod.SelfLink)
	}
}

func TestConformanceGetListNonRecursive(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	storagetesting.RunTestGetListNonRecursive(context.Background(), t, f.increase, f)
}

func (f *fixture) increase(_ context.Context, t *testing.T) int64 { return f.otherWrite(t) }

func TestConformanceConsistentList(t *testing.T) {
	f := newFixture(t, fixtureConfig{})
	storagetesting.RunTestConsistentList(context.Background(), t, f, f.increase, false, true, false)
}

func TestConformanceProgress(t *testing.T) {
	f := newFixture(t, fixtureConfig{bookmarks: 20 * time.Millisecond})
	storagetesting.RunOptionalTestProgressNotify(context.Background(), t, f, f.increase)
}

func TestConformanceBookmarks(t *testing.T) {
	f := newFixture(t, fixtureConfig{bookmarks: 20 * time.Millisecond})
	storagetesting.RunTestWatchDispatchBookmarkEvents(context.Background(), t, f, true)
	// A bookmark is sent only if it says something new: others have to write.
	f = newFixture(t, fixtureConfig{bookmarks: 20 * time.Millisecond})
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for t.Context().Err() == nil {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				f.otherWrite(t)
			}
		}
	})
	storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion(context.Background(), t, f)
	close(stop)
	others.Wait()
}

// compact checks that the history, which was made as short as the test needs,
// ends at rv after one more write.
func (f *fixture) compact(_ context.Context, t *testing.T, rv string) {
	t.Helper()
	f.otherWrite(t)
	if have := strconv.FormatInt(f.store.CompactRevision(), 10); have != rv {
		t.Fatalf("history reaches back to %s instead of %s", have, rv)
	}
}

func TestConformanceCompaction(t *testing.T) {
	ctx := context.Background()
	t.Run("List", func(t *testing.T) {
		f := newFixture(t, fixtureConfig{history: 8})
		storagetesting.RunTestList(ctx, t, f, f.compact, false, nil)
	})
	t.Run("InconsistentContinuation", func(t *testing.T) {
		f := newFixture(t, fixtureConfig{history: 1})
		storagetesting.RunTestListInconsistentContinuation(ctx, t, f, f.compact)
	})
	t.Run("CompactRevision", func(t *testing.T) {
		f := newFixture(t, fixtureConfig{history: 1})
		storagetesting.RunTestCompactRevision(ctx, t, f, f.increase, f.compact)
	})
	t.Run("WatchFromZero", func(t *testing.T) {
		f := newFixture(t, fixtureConfig{history: 1})
		storagetesting.RunTestWatchFromZero(ctx, t, f, f.compact)
	})
}

func TestConformanceListContinuation(t *testing.T) {
	ctx := context.Background()
	any := func(*testing.T, uint64, uint64) {}
	storagetesting.RunTestListContinuation(ctx, t, newFixture(t, fixtureConfig{}), any)
	storagetesting.RunTestListPaginationRareObject(ctx, t, newFixture(t, fixtureConfig{}), any)
	storagetesting.RunTestListContinuationWithFilter(ctx, t, newFixture(t, fixtureConfig{}), any)
}

func TestConformanceStats(t *testing.T) {
	for _, sizes := range []bool{false, true} {
		f := newFixture(t, fixtureConfig{})
		if sizes {
			if err := f.EnableResourceSizeEstimation(func(context.Context) ([]string, error) { return nil, nil }); err != nil {
				t.Fatal(err)
			}
		}
		none := storagetesting.NewPrefixTransformer(nil, false)
		storagetesting.RunTestStats(context.Background(), t, f, f.codec, none, sizes)
	}
}

// transforming is a fixture whose codec passes what is stored through one of
// the library's test transformers.
type transforming struct {
	*fixture
	codec *transformingCodec
}

type transformingCodec struct {
	runtime.Codec
	value.Transformer
	stale bool // of the last decode: the next encoding differs
}

func (c *transformingCodec) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	data, stale, err := c.TransformFromStorage(context.Background(), data, value.DefaultContext{})
	if err != nil {
		return nil, nil, apistorage.NewInternalError(err)
	}
	c.stale = stale
	return c.Codec.Decode(data, gvk, into)
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }

func (c *transformingCodec) Encode(obj runtime.Object, w io.Writer) error {
	var plain writer
	if err := c.Codec.Encode(obj, &plain); err != nil {
		return err
	}
	if c.stale {
		plain = append(plain, ' ')
	}
	data, err := c.TransformToStorage(context.Background(), plain, value.DefaultContext{})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func (f *transforming) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	before := f.codec.Transformer
	after := *before.(*storagetesting.PrefixTransformer)
	f.codec.Transformer = modify(&after)
	return func() { f.codec.Transformer = before }
}

func newTransforming(t *testing.T) *transforming {
	codec := &transformingCodec{Codec: exampleCodec(t), Transformer: storagetesting.NewPrefixTransformer([]byte("test!"), false)}
	return &transforming{newFixture(t, fixtureConfig{codec: codec}), codec}
}

func TestConformanceWithTransformer(t *testing.T) {
	ctx := context.Background()
	t.Run("GuaranteedUpdate", func(t *testing.T) {
		f := newTransforming(t)
		storagetesting.RunTestGuaranteedUpdate(ctx, t, f, f.checkStored)
	})
	t.Run("TransformationFailure", func(t *testing.T) {
		storagetesting.RunTestTransformationFailure(ctx, t, newTransforming(t))
	})
	t.Run("ListResourceVersionMatch", func(t *testing.T) {
		storagetesting.RunTestListResourceVersionMatch(ctx, t, newTransforming(t))
	})
	t.Run("WatchError", func(t *testing.T) {
		featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.WatchList, true)
		storagetesting.RunTestWatchError(ctx, t, newTransforming(t))
	})
	t.Run("WatchErrorIsBlockingFurtherEvents", func(t *testing.T) {
		storagetesting.RunWatchErrorIsBlockingFurtherEvents(ctx, t, newTransforming(t))
	})
}
