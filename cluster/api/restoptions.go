package api

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/registry/generic"
	apistorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/storage"
)

// restOptions gives every resource its storage on the backend.
type restOptions struct {
	backend *storage.Backend
	// codec gives the stored form of a resource and its version.
	codec func(schema.GroupResource) (runtime.Codec, schema.GroupVersion)
	// grouped puts the group into the key, as upstream does for custom resources.
	grouped bool
}

// protobufOptions stores built-in kinds: Protobuf, in the preferred version.
func protobufOptions(b *storage.Backend, scheme *runtime.Scheme, codecs serializer.CodecFactory) *restOptions {
	encoder := protobuf.NewSerializer(scheme, scheme)
	decoder := codecs.UniversalDeserializer()
	return &restOptions{backend: b, codec: func(gr schema.GroupResource) (runtime.Codec, schema.GroupVersion) {
		gv := schema.GroupVersion{Group: gr.Group, Version: "v1"}
		if known := scheme.PrioritizedVersionsForGroup(gr.Group); len(known) > 0 {
			gv = known[0]
		}
		internal := schema.GroupVersion{Group: gr.Group, Version: runtime.APIVersionInternal}
		return codecs.CodecForVersions(encoder, decoder, gv, internal), gv
	}}
}

// fixedOptions stores everything with one codec.
func fixedOptions(b *storage.Backend, codec runtime.Codec, gv schema.GroupVersion) *restOptions {
	return &restOptions{backend: b, grouped: true,
		codec: func(schema.GroupResource) (runtime.Codec, schema.GroupVersion) { return codec, gv }}
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (o *restOptions) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	codec, gv := o.codec(gr)
	config := storagebackend.NewDefaultConfig(storage.KeyPrefix, codec)
	config.EncodeVersioner = gv
	prefix := "/" + gr.Resource
	if o.grouped {
		prefix = "/" + gr.Group + prefix
	}
	return generic.RESTOptions{
		StorageConfig:           config.ForResource(gr),
		Decorator:               o.storage,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: deleteCollectionWorkers,
		ResourcePrefix:          prefix,
	}, nil
}

// deleteCollectionWorkers is how many objects of a DELETE on a collection are
// deleted at a time: enough to share log entries.
const deleteCollectionWorkers = 8

// storage is a generic.StorageDecorator. The codec is taken from the config,
// where custom resources have replaced it.
func (o *restOptions) storage(c *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
	newFunc, _ func() runtime.Object, _ apistorage.AttrFunc, _ apistorage.IndexerFuncs, _ *cache.Indexers) (apistorage.Interface, factory.DestroyFunc, error) {
	r, err := o.backend.Resource(storage.ResourceConfig{Prefix: prefix, Codec: c.Codec, NewFunc: newFunc})
	return r, func() {}, err
}
