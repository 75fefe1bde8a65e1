package core

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
)

func invalidService(s *corev1.Service, errs field.ErrorList) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
}

// beginCreate fills in families, addresses and ports. What it reserves is
// settled by Create or Update, so the finish function has nothing to do.
func (r *ServiceStore) beginCreate(ctx context.Context, obj runtime.Object, o *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	s := obj.(*corev1.Service)
	syncClusterIPs(s, nil)
	if err := r.allocate(ctx, s, nil, dryrun.IsDryRun(o.DryRun)); err != nil {
		return nil, err
	}
	return func(context.Context, bool) {}, nil
}

func (r *ServiceStore) beginUpdate(ctx context.Context, obj, old runtime.Object, o *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
	s, was := obj.(*corev1.Service), old.(*corev1.Service)
	keepAllocated(s, was)
	syncClusterIPs(s, was)
	dropLeftovers(s, was)
	if err := r.allocate(ctx, s, was, dryrun.IsDryRun(o.DryRun)); err != nil {
		return nil, err
	}
	return func(context.Context, bool) {}, nil
}

// allocate reserves what s needs and was (nil on create) does not have.
func (r *ServiceStore) allocate(ctx context.Context, s, was *corev1.Service, dryRun bool) error {
	if errs := initFamilies(s, was); len(errs) > 0 {
		return invalidService(s, errs)
	}
	// Wrong objects cost no reservation.
	if errs := r.precheck(ctx, s, was); len(errs) > 0 {
		return invalidService(s, errs)
	}
	a := allocation{ctx: ctx, store: r, service: s, owner: owner(s), ips: r.ips, ports: r.ports, had: map[string]bool{}}
	if dryRun {
		a.ips, a.ports = r.ips.DryRun(), r.ports.DryRun()
	}
	q, _ := ctx.Value(requestKey{}).(*request)
	if q == nil {
		return apierrors.NewInternalError(errors.New("services are written only through their own store"))
	}
	a.made, q.failed = q.names, true
	if was != nil {
		a.owner = owner(was)
		a.had = holdings(was)
		for name := range a.had {
			q.names[name] = a.owner
		}
	}
	if err := a.clusterIPs(); err != nil {
		return err
	}
	if err := a.nodePorts(); err != nil {
		return err
	}
	if err := a.healthCheckPort(); err != nil {
		return err
	}
	q.failed = false
	return nil
}

// precheck validates as if everything that is to be allocated were there.
func (r *ServiceStore) precheck(ctx context.Context, s, was *corev1.Service) field.ErrorList {
	c := s.DeepCopy()
	if needsHealthCheckPort(c) && c.Spec.HealthCheckNodePort == 0 {
		c.Spec.HealthCheckNodePort = int32(r.ports.First)
	}
	if was == nil {
		return r.Store.CreateStrategy.Validate(ctx, c)
	}
	return validateServiceUpdate(c, was)
}

// allocation is the work of one request on one Service.
type allocation struct {
	ctx        context.Context
	store      *ServiceStore
	service    *corev1.Service
	owner      string
	ips, ports allocator.Pool
	had        map[string]bool   // what the Service held before
	made       map[string]string // what the request has to settle
}

func (a *allocation) clusterIPs() error {
	spec := &a.service.Spec
	if !needsClusterIP(a.service) || isHeadless(a.service) {
		return nil
	}
	if len(spec.ClusterIPs) == 0 {
		n, err := a.ips.Next(a.ctx, a.owner)
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: %w", err))
		}
		a.made[ipName(n)] = a.owner
		spec.ClusterIP = fromNumber(n).String()
		spec.ClusterIPs = []string{spec.ClusterIP}
		return nil
	}
	ip := spec.ClusterIPs[0]
	addr, err := netip.ParseAddr(ip)
	if err == nil && a.had[ipPrefix+addr.String()] {
		return nil
	}
	refuse := func(why string) error {
		return invalidService(a.service, field.ErrorList{field.Invalid(field.NewPath("spec", "clusterIPs"), spec.ClusterIPs,
			fmt.Sprintf("failed to allocate IP %v: %v", ip, why))})
	}
	if err != nil || !addr.Is4() || !a.ips.Contains(toNumber(addr)) {
		return refuse("the provided network does not match the current range")
	}
	switch err := a.ips.Take(a.ctx, toNumber(addr), a.owner); {
	case errors.Is(err, allocator.ErrTaken):
		return refuse("provided IP is already allocated")
	case err != nil:
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate IP %s: %w", ip, err))
	}
	a.made[ipName(toNumber(addr))] = a.owner
	return nil
}

// nodePorts gives every port its node port. Ports that share a port number,
// such as DNS over TCP and UDP, share the node port.
func (a *allocation) nodePorts() error {
	spec := &a.service.Spec
	if t := spec.Type; t != corev1.ServiceTypeNodePort && t != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	shared := map[int32]int32{} // port -> node port
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.NodePort == 0 {
			continue
		}
		at := field.NewPath("spec", "ports").Index(i).Child("nodePort")
		if err := a.takePort(p.NodePort, at); err != nil {
			return err
		}
		if shared[p.Port] == 0 {
			shared[p.Port] = p.NodePort
		}
	}
	if !needsNodePort(a.service) {
		return nil
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		if n := shared[p.Port]; n != 0 && !a.usedBy(n, p.Protocol) {
			p.NodePort = n
			continue
		}
		n, err := a.ports.Next(a.ctx, a.owner)
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
		}
		a.made[portName(n)] = a.owner
		p.NodePort = int32(n)
		shared[p.Port] = p.NodePort
	}
	return nil
}

func (a *allocation) usedBy(nodePort int32, protocol corev1.Protocol) bool {
	return slices.ContainsFunc(a.service.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.NodePort == nodePort && p.Protocol == protocol
	})
}

// takePort reserves a node port that was asked for.
func (a *allocation) takePort(n int32, at *field.Path) error {
	name := portName(uint32(n))
	if a.had[name] {
		return nil
	}
	if n < 0 || !a.ports.Contains(uint32(n)) {
		return invalidService(a.service, field.ErrorList{field.Invalid(at, n,
			fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.ports.First, a.ports.Last))})
	}
	switch err := a.ports.Take(a.ctx, uint32(n), a.owner); {
	case errors.Is(err, allocator.ErrTaken):
		return invalidService(a.service, field.ErrorList{field.Invalid(at, n, "provided port is already allocated")})
	case err != nil:
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate node port %d: %w", n, err))
	}
	a.made[name] = a.owner
	return nil
}

func (a *allocation) healthCheckPort() error {
	spec := &a.service.Spec
	if !needsHealthCheckPort(a.service) {
		return nil
	}
	if n := spec.HealthCheckNodePort; n != 0 {
		if slices.Contains(nodePorts(a.service), n) {
			return invalidService(a.service, field.ErrorList{field.Invalid(field.NewPath("spec", "healthCheckNodePort"), n, "provided port is already allocated")})
		}
		return a.takePort(n, field.NewPath("spec", "healthCheckNodePort"))
	}
	n, err := a.ports.Next(a.ctx, a.owner)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a HealthCheck NodePort: %w", err))
	}
	a.made[portName(n)] = a.owner
	spec.HealthCheckNodePort = int32(n)
	return nil
}
