package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// objectPrefix is where API objects are; what follows is
// [GROUP/]RESOURCE/[NAMESPACE/]NAME.
const objectPrefix = "/registry/"

// SealedMagic begins every value that is sealed (cluster/seal).
const SealedMagic = "skiff:sealed:"

// protobufMagic begins the envelope of built-in kinds.
const protobufMagic = "k8s\x00"

// OpenValue gives the plain form of the sealed value under a key of the store.
type OpenValue func(key string, value []byte) ([]byte, error)

// OpenSealed makes an OpenValue for a snapshot, from everything in it below
// OwnPrefix.
type OpenSealed func(own map[string][]byte) (OpenValue, error)

// errUnknownKind says that a later version of skiff wrote an object.
var errUnknownKind = errors.New("this version of skiff does not know the kind")

func sealed(value []byte) bool { return bytes.HasPrefix(value, []byte(SealedMagic)) }

// decodeObject gives an object in the form in which kubectl shows it, with the
// fields that are stored: neither resourceVersion nor defaults of later versions.
func decodeObject(key string, value []byte) (*unstructured.Unstructured, error) {
	var out *unstructured.Unstructured
	var err error
	if bytes.HasPrefix(value, []byte(protobufMagic)) {
		out, err = decodeProtobuf(value)
	} else {
		out = &unstructured.Unstructured{}
		err = out.UnmarshalJSON(value)
	}
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", key, err)
	}
	return out, nil
}

// serializer decodes all kinds that client-go knows.
var serializer = sync.OnceValue(func() runtime.Serializer { return protobuf.NewSerializer(scheme.Scheme, scheme.Scheme) })

func decodeProtobuf(value []byte) (*unstructured.Unstructured, error) {
	obj, gvk, err := serializer().Decode(value, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return nil, fmt.Errorf("%w: %w", errUnknownKind, err)
	}
	if err != nil {
		return nil, err
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	out := &unstructured.Unstructured{Object: fields}
	out.SetGroupVersionKind(*gvk)
	return out, nil
}

// typeOf tells the kind of a stored object without decoding all of it.
func typeOf(key string, value []byte) (schema.GroupVersionKind, error) {
	var t metav1.TypeMeta
	switch body, ok := bytes.CutPrefix(value, []byte(protobufMagic)); {
	case sealed(value) && strings.HasPrefix(key, objectPrefix+"secrets/"):
		return schema.GroupVersionKind{Version: "v1", Kind: "Secret"}, nil
	case ok:
		var u runtime.Unknown
		if err := u.Unmarshal(body); err != nil {
			return schema.GroupVersionKind{}, fmt.Errorf("object %s: %w", key, err)
		}
		t = metav1.TypeMeta{APIVersion: u.APIVersion, Kind: u.Kind}
	default:
		if err := json.Unmarshal(value, &t); err != nil {
			return schema.GroupVersionKind{}, fmt.Errorf("object %s is neither Protobuf nor JSON: %w", key, err)
		}
	}
	if t.Kind == "" {
		return schema.GroupVersionKind{}, fmt.Errorf("object %s names no kind", key)
	}
	return schema.FromAPIVersionAndKind(t.APIVersion, t.Kind), nil
}

// splitKey gives the resource (with its group, for custom resources: only theirs
// is in the key, and has a dot), the namespace, if it has one, and the name.
func splitKey(key string) (resource, namespace, name string) {
	parts := strings.Split(strings.TrimPrefix(key, objectPrefix), "/")
	name = parts[len(parts)-1]
	switch parts = parts[:len(parts)-1]; {
	case len(parts) == 0:
		return "", "", name
	case strings.Contains(parts[0], ".") && len(parts) > 1:
		resource, parts = parts[1]+"."+parts[0], parts[2:]
	default:
		resource, parts = parts[0], parts[1:]
	}
	return resource, strings.Join(parts, "/"), name
}
