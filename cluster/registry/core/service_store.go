package core

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/allocator"
)

const (
	ipPrefix   = "clusterip/"
	portPrefix = "nodeport/"
	// releaseTimeout bounds the clean-up after a request that may be over.
	releaseTimeout = 10 * time.Second
)

// ServiceStore serves services: a store that reserves addresses and ports
// before a Service is written and gives them up once no Service uses them.
//
// A crash or a lost connection in between never lets two Services hold the
// same address; it may leave a reservation without a Service, which ends when
// somebody asks for it or RepairServices runs.
type ServiceStore struct {
	*registry.Store
	reserved   allocator.Reservations
	ips, ports allocator.Pool
	network    netip.Prefix
	log        *slog.Logger
}

var _ rest.StandardStorage = (*ServiceStore)(nil)

// customize sets the hooks that the status subresource shares.
func (r *ServiceStore) customize(s *genericregistry.Store) { s.AfterDelete = r.afterDelete }

func (r *ServiceStore) init(store *registry.Store, cfg Config) error {
	p := cfg.ServiceCIDR.Masked()
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() > 30 || p.Bits() < 8 {
		return fmt.Errorf("service CIDR %s: must be an IPv4 range between /8 and /30", cfg.ServiceCIDR)
	}
	if cfg.NodePorts.Size <= 0 || cfg.NodePorts.Base < 1 || cfg.NodePorts.Base+cfg.NodePorts.Size-1 > 65535 {
		return fmt.Errorf("node port range %s: must lie between 1 and 65535", cfg.NodePorts.String())
	}
	r.Store, r.reserved, r.network, r.log = store, cfg.Reservations, p, cfg.Logger
	// Neither the network's own address nor the broadcast address is given.
	first, size := toNumber(p.Addr()), uint32(1)<<(32-p.Bits())
	r.ips = allocator.Pool{Reservations: cfg.Reservations, First: first + 1, Last: first + size - 2, Name: ipName,
		Live: r.holds, Static: staticBand(size-2, 256)}
	base := uint32(cfg.NodePorts.Base)
	r.ports = allocator.Pool{Reservations: cfg.Reservations, First: base, Last: base + uint32(cfg.NodePorts.Size) - 1, Name: portName,
		Live: r.holds, Static: staticBand(uint32(cfg.NodePorts.Size), 128)}
	r.Store.BeginCreate = r.beginCreate
	r.Store.BeginUpdate = r.beginUpdate
	return nil
}

// staticBand is how many of the lowest numbers are kept for those who ask for
// one of them.
func staticBand(size, most uint32) uint32 {
	step := uint32(16)
	if most == 128 {
		step = 32
	}
	if size < 16 || most == 128 && size < 16*step/4 {
		return 0
	}
	return min(max(size/step, 16), most)
}

func ipName(n uint32) string   { return ipPrefix + fromNumber(n).String() }
func portName(n uint32) string { return portPrefix + strconv.FormatUint(uint64(n), 10) }

func toNumber(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromNumber(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// holdings names every reservation that s needs.
func holdings(s *corev1.Service) map[string]bool {
	out := map[string]bool{}
	if s.Spec.Type != corev1.ServiceTypeExternalName {
		for _, ip := range s.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
				out[ipPrefix+a.String()] = true
			}
		}
	}
	for _, n := range nodePorts(s) {
		out[portName(uint32(n))] = true
	}
	if n := s.Spec.HealthCheckNodePort; n != 0 {
		out[portName(uint32(n))] = true
	}
	return out
}

func owner(s *corev1.Service) string {
	return s.Namespace + "/" + s.Name + "/" + string(s.UID)
}

// ownerOf reads the Service that an owner names, and nil when it is gone.
func (r *ServiceStore) ownerOf(ctx context.Context, owner string) (*corev1.Service, error) {
	part := strings.Split(owner, "/")
	if len(part) != 3 {
		return nil, fmt.Errorf("reservation's owner %q is not NAMESPACE/NAME/UID", owner)
	}
	obj, err := r.Store.Get(genericapirequest.WithNamespace(ctx, part[0]), part[1], &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the Service that holds a reservation: %w", err)
	}
	if s := obj.(*corev1.Service); string(s.UID) == part[2] {
		return s, nil
	}
	return nil, nil
}

// holds says whether the holder of a reservation still needs it.
func (r *ServiceStore) holds(ctx context.Context, _ uint32, held allocator.Reservation) (bool, error) {
	s, err := r.ownerOf(ctx, held.Owner)
	return s != nil && holdings(s)[held.Name], err
}

// request collects what one API request reserved, so that it can be given up
// when the request is over.
type request struct {
	dryRun bool
	failed bool              // the last allocation failed, so nothing was written after it
	names  map[string]string // reservation -> owner: made, or used by the object as it was
}

type requestKey struct{}

func withRequest(ctx context.Context, dryRun []string) (context.Context, *request) {
	q := &request{dryRun: dryrun.IsDryRun(dryRun), names: map[string]string{}}
	return context.WithValue(ctx, requestKey{}, q), q
}

// Create implements rest.Creater.
func (r *ServiceStore) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	ctx, q := withRequest(ctx, o.DryRun)
	out, err := r.Store.Create(ctx, obj, validate, o)
	r.settle(ctx, q, out, err)
	return out, err
}

// Update implements rest.Updater.
func (r *ServiceStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, force bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	ctx, q := withRequest(ctx, o.DryRun)
	out, created, err := r.Store.Update(ctx, name, info, create, update, force, o)
	r.settle(ctx, q, out, err)
	return out, created, err
}

// settle gives up what the request reserved or replaced and the Service, as it
// is stored now, does not need. After an error that leaves open whether the
// write happens, everything is kept: RepairServices finds out later.
func (r *ServiceStore) settle(ctx context.Context, q *request, out runtime.Object, err error) {
	if q.dryRun || len(q.names) == 0 || err != nil && !q.failed && !refused(err) {
		return
	}
	// The caller may be gone; the clean-up is to happen all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	written, _ := out.(*corev1.Service)
	for name, by := range q.names {
		s := written
		if err != nil || s == nil || owner(s) != by {
			var readErr error
			if s, readErr = r.ownerOf(ctx, by); readErr != nil {
				r.log.Warn("reservation is kept for now", "name", name, "error", readErr)
				continue
			}
		}
		if s == nil || !holdings(s)[name] {
			r.release(ctx, name, by)
		}
	}
}

// refused says that a request has certainly changed nothing.
func refused(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonInvalid, metav1.StatusReasonConflict, metav1.StatusReasonAlreadyExists, metav1.StatusReasonForbidden,
		metav1.StatusReasonNotFound, metav1.StatusReasonBadRequest:
		return true
	}
	return false
}

func (r *ServiceStore) release(ctx context.Context, name, owner string) {
	if err := r.reserved.Release(ctx, name, owner); err != nil {
		r.log.Warn("reservation is kept until it is asked for or repaired", "name", name, "owner", owner, "error", err)
	}
}

func (r *ServiceStore) afterDelete(obj runtime.Object, o *metav1.DeleteOptions) {
	if o != nil && dryrun.IsDryRun(o.DryRun) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	s := obj.(*corev1.Service)
	for name := range holdings(s) {
		r.release(ctx, name, owner(s))
	}
}
