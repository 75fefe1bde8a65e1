// Package admission is the chain of checks and defaults between authorization
// and validation: namespace lifecycle, service accounts, node restriction,
// default tolerations, priorities, topology labels, runtime classes, limit ranges,
// storage classes, protection and expansion of volumes, and Pod Security.
//
// Limits: no webhooks and no admission policies; their API group is not
// served. ResourceQuotas are refused, since nothing enforces them.
package admission

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"github.com/skiff-sh/skiff/cluster/auth"
)

// Objects is what the checks look up.
type Objects interface {
	auth.Objects
	RuntimeClass(ctx context.Context, name string) (*nodev1.RuntimeClass, error)
	StorageClass(ctx context.Context, name string) (*storagev1.StorageClass, error)
	StorageClasses(ctx context.Context) ([]storagev1.StorageClass, error)
	LimitRanges(ctx context.Context, namespace string) ([]corev1.LimitRange, error)
}

// Config is what the cluster's settings change.
type Config struct {
	// PodEvictionTimeout is what pods tolerate by default of a node that is not
	// ready or cannot be reached; nil is DefaultPodEvictionTimeout. It is rounded
	// up to seconds.
	PodEvictionTimeout *time.Duration
}

// New gives the chain in the order in which it has to run: mutations first,
// those that check the result last.
func New(objects Objects, c Config) (admission.Interface, error) {
	timeout := DefaultPodEvictionTimeout
	if c.PodEvictionTimeout != nil {
		timeout = *c.PodEvictionTimeout
	}
	if timeout < 0 {
		return nil, fmt.Errorf("admission: the pod eviction timeout %s is negative", timeout)
	}
	security, err := newPodSecurity(objects)
	if err != nil {
		return nil, err
	}
	create, change := admission.NewHandler(admission.Create), admission.NewHandler(admission.Create, admission.Update)
	return admission.NewChainHandler(
		&lifecycle{admission.NewHandler(admission.Create, admission.Update, admission.Delete), objects},
		&nodeRestriction{admission.NewHandler(admission.Create, admission.Update, admission.Delete), objects},
		&serviceAccount{change, objects},
		&priority{change},
		&topology{create, objects},
		&runtimeClass{create, objects},
		&limitRanger{change, objects},
		&tolerations{change, int64((timeout + time.Second - 1) / time.Second)},
		&storage{change, objects},
		&unsupported{create},
		&podResize{admission.NewHandler(admission.Update), objects},
		security,
	), nil
}

var (
	podsResource       = schema.GroupResource{Resource: "pods"}
	nodesResource      = schema.GroupResource{Resource: "nodes"}
	accountsResource   = schema.GroupResource{Resource: "serviceaccounts"}
	namespacesResource = schema.GroupResource{Resource: "namespaces"}
)

// newPod gives the pod of a request that creates one, else nil.
func newPod(a admission.Attributes) (*corev1.Pod, error) {
	if a.GetResource().GroupResource() != podsResource || a.GetSubresource() != "" || a.GetOperation() != admission.Create {
		return nil, nil
	}
	return as[*corev1.Pod](a.GetObject())
}

// podSpec gives the pod of a request that creates one or updates more of it
// than a subresource, else nil.
func podSpec(a admission.Attributes) (*corev1.Pod, error) {
	if a.GetResource().GroupResource() != podsResource || a.GetSubresource() != "" || (a.GetOperation() != admission.Create && a.GetOperation() != admission.Update) {
		return nil, nil
	}
	return as[*corev1.Pod](a.GetObject())
}

func as[T runtime.Object](obj runtime.Object) (T, error) {
	t, ok := obj.(T)
	if !ok {
		return t, apierrors.NewBadRequest(fmt.Sprintf("got a %T in a request for a %T", obj, t))
	}
	return t, nil
}

// mirrorPod tells whether the pod only shows what a node runs from a file.
func mirrorPod(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}
