package coordination

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
	"github.com/skiff-sh/skiff/cluster/registry"
)

const (
	leaseSeconds = 40 // what a kubelet's lease says
	// A watch of node leases tells that nodes are alive as often as kubelets do;
	// one of all namespaces, such as an informer's, often enough that no lease
	// looks as if it had run out.
	renewOne = 10 * time.Second
	renewAll = 30 * time.Second
)

var errVirtual = errors.New("the leases of this namespace are answered from gossip and cannot be written")

// leases are stored, but for those of kube-node-lease: they say what gossip knows
// at the moment of the question, and nothing of them is in the log.
type leases struct {
	*registry.Store
	gossip nodehealth.Gossip
	now    func() time.Time
}

func virtual(ctx context.Context) bool {
	return genericrequest.NamespaceValue(ctx) == corev1.NamespaceNodeLease
}

func refuse(name string) error {
	return apierrors.NewForbidden(coordinationv1.Resource("leases"), name, errVirtual)
}

// lease is what a member's lease looks like now; nil for one that has left.
func (l *leases) lease(m nodehealth.Member, version string) *coordinationv1.Lease {
	if m.State == nodehealth.Left {
		return nil
	}
	renewed := l.now()
	if m.State == nodehealth.Dead {
		renewed = m.Since
	}
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: m.Name, Namespace: corev1.NamespaceNodeLease, ResourceVersion: version,
			UID: types.UID(uuid.NewSHA1(uuid.NameSpaceURL, []byte("kube-node-lease/"+m.Name)).String())},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(m.Name), LeaseDurationSeconds: ptr.To(int32(leaseSeconds)),
			RenewTime: ptr.To(metav1.NewMicroTime(renewed))},
	}
}

// all are the leases that match, by name.
func (l *leases) all(o *internalversion.ListOptions, version string) []coordinationv1.Lease {
	var out []coordinationv1.Lease
	for _, m := range l.gossip.Members() {
		if lease := l.lease(m, version); lease != nil && matches(o, m.Name) {
			out = append(out, *lease)
		}
	}
	slices.SortFunc(out, func(a, b coordinationv1.Lease) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func matches(o *internalversion.ListOptions, name string) bool {
	if o == nil {
		return true
	}
	if o.LabelSelector != nil && !o.LabelSelector.Matches(labels.Set{}) {
		return false
	}
	return o.FieldSelector == nil || o.FieldSelector.Matches(fields.Set{"metadata.name": name, "metadata.namespace": corev1.NamespaceNodeLease})
}

func (l *leases) version(ctx context.Context) (string, error) {
	v, err := l.Storage.Storage.GetCurrentResourceVersion(ctx)
	return strconv.FormatUint(v, 10), err
}

// Get implements rest.Getter.
func (l *leases) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	if !virtual(ctx) {
		return l.Store.Get(ctx, name, o)
	}
	version, err := l.version(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range l.gossip.Members() {
		if m.Name == name {
			if lease := l.lease(m, version); lease != nil {
				return lease, nil
			}
		}
	}
	return nil, apierrors.NewNotFound(coordinationv1.Resource("leases"), name)
}

// List implements rest.Lister. The last page of all namespaces has the leases of
// nodes too.
func (l *leases) List(ctx context.Context, o *internalversion.ListOptions) (runtime.Object, error) {
	obj, err := l.Store.List(ctx, o)
	ns := genericrequest.NamespaceValue(ctx)
	if err != nil || ns != "" && !virtual(ctx) {
		return obj, err
	}
	stored, ok := obj.(*coordinationv1.LeaseList)
	if !ok {
		return obj, nil
	}
	list := &coordinationv1.LeaseList{ListMeta: stored.ListMeta}
	for _, lease := range stored.Items {
		if lease.Namespace != corev1.NamespaceNodeLease {
			list.Items = append(list.Items, lease)
		}
	}
	if list.Continue == "" {
		list.Items = append(list.Items, l.all(o, list.ResourceVersion)...)
	}
	return list, nil
}

// Create implements rest.Creater.
func (l *leases) Create(ctx context.Context, obj runtime.Object, v rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	if virtual(ctx) {
		name := ""
		if lease, ok := obj.(*coordinationv1.Lease); ok {
			name = lease.Name
		}
		return nil, refuse(name)
	}
	return l.Store.Create(ctx, obj, v, o)
}

// Update implements rest.Updater.
func (l *leases) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, c rest.ValidateObjectFunc, u rest.ValidateObjectUpdateFunc,
	force bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	if virtual(ctx) {
		return nil, false, refuse(name)
	}
	return l.Store.Update(ctx, name, info, c, u, force, o)
}

// Delete implements rest.GracefulDeleter.
func (l *leases) Delete(ctx context.Context, name string, v rest.ValidateObjectFunc, o *metav1.DeleteOptions) (runtime.Object, bool, error) {
	if virtual(ctx) {
		return nil, false, refuse(name)
	}
	return l.Store.Delete(ctx, name, v, o)
}

// DeleteCollection implements rest.CollectionDeleter.
func (l *leases) DeleteCollection(ctx context.Context, v rest.ValidateObjectFunc, o *metav1.DeleteOptions, list *internalversion.ListOptions) (runtime.Object, error) {
	if virtual(ctx) {
		return nil, refuse("")
	}
	return l.Store.DeleteCollection(ctx, v, o, list)
}

// Watch implements rest.Watcher. Nothing of gossip has a history: a watch begins
// with every lease of a node as it is now.
func (l *leases) Watch(ctx context.Context, o *internalversion.ListOptions) (watch.Interface, error) {
	ns := genericrequest.NamespaceValue(ctx)
	if ns != "" && !virtual(ctx) {
		return l.Store.Watch(ctx, o)
	}
	version, err := l.version(ctx)
	if err != nil {
		return nil, err
	}
	first := watch.Added
	if o != nil && o.ResourceVersion != "" && o.ResourceVersion != "0" {
		first, version = watch.Modified, o.ResourceVersion // the client has listed them
	}
	stored, err := l.Store.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	every := renewOne
	if ns == "" {
		every = renewAll
	}
	w := &leaseWatch{leases: l, options: o, stored: stored, version: version, out: make(chan watch.Event, 16), done: make(chan struct{}), told: map[string]nodehealth.State{}}
	go w.run(first, every)
	return w, nil
}
