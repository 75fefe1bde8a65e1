package live

import (
	"bytes"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-sh/skiff/fsm/store"
)

// serializer reads and writes built-in kinds in the form in which they are stored.
var serializer = sync.OnceValue(func() runtime.Serializer { return protobuf.NewSerializer(scheme.Scheme, scheme.Scheme) })

func decode[T any, P interface {
	*T
	runtime.Object
}](kv *store.KeyValue) (P, error) {
	obj, gvk, err := serializer().Decode(kv.Value, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", kv.Key, err)
	}
	out, ok := obj.(P)
	if !ok {
		return nil, fmt.Errorf("object %s: it is a %T", kv.Key, obj)
	}
	out.GetObjectKind().SetGroupVersionKind(*gvk)
	return out, nil
}

// encode gives kv with another object.
func encode(kv *store.KeyValue, obj runtime.Object) (*store.KeyValue, error) {
	var b bytes.Buffer
	if err := serializer().Encode(obj, &b); err != nil {
		return nil, fmt.Errorf("object %s: %w", kv.Key, err)
	}
	return &store.KeyValue{Key: kv.Key, Value: b.Bytes(), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Expires: kv.Expires}, nil
}

// kept says whether a controller keeps slices with that label.
func kept(manager string) bool {
	return manager == "endpointslice-controller.k8s.io" || manager == "endpointslicemirroring-controller.k8s.io"
}

// ofAPI says whether a Service is the API's own, whose endpoints are the servers.
func ofAPI(namespace, name string) bool {
	return namespace == metav1.NamespaceDefault && name == "kubernetes"
}

// runs says whether a pod has not ended.
func runs(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func ref(p *corev1.Pod) Pod {
	return Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Node: p.Spec.NodeName}
}

// pod gives a pod of the snapshot the status of the present.
func (p *preparation) pod(kv *store.KeyValue) (*store.KeyValue, error) {
	before, err := decode[corev1.Pod](kv)
	if err != nil {
		return nil, err
	}
	if have, ok := p.Now.Get(kv.Key); ok {
		now, err := decode[corev1.Pod](have)
		if err != nil {
			return nil, err
		}
		if now.UID == before.UID {
			before.Status, before.Spec.NodeName = now.Status, now.Spec.NodeName
			if same(now, before) {
				return have, nil
			}
			return encode(kv, before)
		}
	}
	if !runs(before) {
		return kv, nil
	}
	p.pods.Start = append(p.pods.Start, ref(before))
	for i := range before.Status.Conditions {
		if c := &before.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			c.Status, c.Reason, c.Message = corev1.ConditionFalse, "Restored", "The pod came back with a restored snapshot and has not started yet"
		}
	}
	for i := range before.Status.ContainerStatuses {
		before.Status.ContainerStatuses[i].Ready = false
	}
	return encode(kv, before)
}

// same says whether two pods differ in nothing but who wrote their status.
func same(a, b *corev1.Pod) bool {
	x, y := *a, *b
	x.ManagedFields, y.ManagedFields = nil, nil
	return equality.Semantic.DeepEqual(x, y)
}

// endpoints gives those of the present for those that a controller keeps, nil if
// there are none.
func (p *preparation) endpoints(kv *store.KeyValue) (*store.KeyValue, error) {
	e, err := decode[corev1.Endpoints](kv)
	if err != nil {
		return nil, err
	}
	if e.Labels["endpoints.kubernetes.io/managed-by"] == "" && !ofAPI(e.Namespace, e.Name) {
		return kv, nil
	}
	have, _ := p.Now.Get(kv.Key) // if there are none, the controller makes them
	return have, nil
}
