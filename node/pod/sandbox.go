package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/runtime"
	"github.com/skiff-sh/skiff/node/volume"
)

// prepare makes the volumes and, at the same time, the sandbox with its
// network. Called again it makes what is missing.
func (w *worker) prepare(ctx context.Context) error {
	if err := os.MkdirAll(w.m.podDir(w.uid), 0o750); err != nil {
		return fmt.Errorf("making the pod's directory: %w", err)
	}
	w.takeDirty()
	var wg sync.WaitGroup
	var volErr, boxErr error
	fields := w.fields() // without the addresses, which volumes may not ask for
	adopted := w.sandbox != nil && w.sandbox.Alive() && w.vols == nil && len(w.ips) == 0 && w.anyStarted()
	wg.Go(func() {
		if adopted { // its volumes are there; they are brought up to date next
			w.vols = w.m.cfg.Volumes.Adopt(w.pod)
			w.mu.Lock()
			w.dirty["volumes"] = true
			w.mu.Unlock()
			return
		}
		var vols *volume.Pod
		if vols, volErr = w.m.cfg.Volumes.Setup(ctx, w.pod, fields); volErr == nil {
			w.vols = vols
		}
	})
	wg.Go(func() { boxErr = w.ensureSandbox(ctx) })
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if boxErr != nil {
		w.fault("FailedCreatePodSandBox", "Failed to create pod sandbox: ", boxErr)
	}
	if volErr != nil {
		for _, err := range split(volErr) {
			w.fault("FailedMount", "", err)
		}
	}
	return errors.Join(boxErr, volErr)
}

func split(err error) []error {
	if m, ok := err.(interface{ Unwrap() []error }); ok {
		return m.Unwrap()
	}
	return []error{err}
}

func (w *worker) takeDirty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirty["volumes"]
	delete(w.dirty, "volumes")
	return d
}

// fields answers the downward API.
func (w *worker) fields() volume.Fields {
	return volume.Fields{NodeName: w.m.cfg.NodeName, PodIPs: w.ips, HostIPs: w.m.cfg.HostIPs, Allocatable: w.mostOf()}
}

// mostOf is what a container without limits may use: what the pod may as a whole,
// else what the node can give.
func (w *worker) mostOf() v1.ResourceList {
	r := w.pod.Spec.Resources
	if r == nil || len(r.Limits) == 0 {
		return w.m.cfg.Allocatable
	}
	out := maps.Clone(r.Limits)
	for name, q := range w.m.cfg.Allocatable {
		if _, ok := out[name]; !ok {
			out[name] = q
		}
	}
	return out
}

// refreshVolumes brings contents up to date after a change of their sources
// or when a token grows old.
func (w *worker) refreshVolumes(ctx context.Context, alarm *time.Time) {
	if w.vols == nil {
		return
	}
	due := !w.vols.RefreshAt.IsZero() && !w.now().Before(w.vols.RefreshAt)
	if w.takeDirty() || due {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		vols, err := w.m.cfg.Volumes.Setup(ctx, w.pod, w.fields())
		if err != nil {
			// Containers keep what they have; it is tried again.
			w.log.Warn("updating the volumes of a running pod", "err", err)
			w.vols.RefreshAt = w.now().Add(15 * time.Second)
		} else {
			w.vols = vols
		}
	}
	earlier(alarm, w.vols.RefreshAt)
}

func findStatus(p *v1.Pod, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// ensureSandbox makes or repairs the sandbox and attaches its network.
func (w *worker) ensureSandbox(ctx context.Context) error {
	if w.sandbox != nil && !w.sandbox.Alive() {
		if err := w.dropSandbox(ctx); err != nil {
			return fmt.Errorf("removing the dead sandbox: %w", err)
		}
	}
	if w.sandbox == nil {
		if err := w.checkHandler(ctx); err != nil {
			return err
		}
		if err := checkHostname(w.pod, w.m.cfg.DNS.Domain); err != nil {
			return err
		}
		began := time.Now()
		sb, err := w.m.cfg.Runtime.CreateSandbox(ctx, w.sandboxConfig())
		w.m.cfg.Meter.Operation(meter.RunSandbox, began, err)
		if err != nil {
			return err
		}
		w.sandbox = sb
		w.attempts++
		w.listen(w.m.ctx)
	}
	if len(w.ips) > 0 {
		return nil
	}
	if w.pod.Spec.HostNetwork {
		w.ips = w.m.cfg.HostIPs
		return nil
	}
	addrs, err := w.m.cfg.Network.Attach(ctx, string(w.uid), w.sandbox.NetNSPath())
	if err != nil {
		return fmt.Errorf("attaching the pod to its network: %w", err)
	}
	if len(addrs) == 0 {
		return errors.New("attaching the pod to its network: it got no address")
	}
	if ports := hostPorts(w.pod); len(ports) > 0 {
		if err := w.m.cfg.Network.HostPorts(ctx, string(w.uid), ports); err != nil {
			return fmt.Errorf("publishing the pod's host ports: %w", err)
		}
	}
	w.ips = addrStrings(addrs)
	return nil
}

// hostPorts are the ports that containers publish on the node.
func hostPorts(p *v1.Pod) []HostPort {
	var out []HostPort
	add := func(c v1.Container) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			ip, _ := netip.ParseAddr(port.HostIP) // validated by the API; empty is every address
			out = append(out, HostPort{HostIP: ip, HostPort: uint16(port.HostPort), ContainerPort: uint16(port.ContainerPort), Protocol: port.Protocol})
		}
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for _, c := range p.Spec.Containers {
		add(c)
	}
	return out
}

func addrStrings(addrs []netip.Addr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Unmap().String())
	}
	return out
}

func (w *worker) sandboxConfig() runtime.SandboxConfig {
	p := w.pod
	cfg := runtime.SandboxConfig{
		PodUID: string(w.uid), Class: classOf(p), Name: p.Name, Namespace: p.Namespace, Attempt: w.attempts,
		HostNetwork: p.Spec.HostNetwork, HostPID: p.Spec.HostPID, HostIPC: p.Spec.HostIPC,
		ShareProcessNamespace: p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace,
		Resources:             podResources(p, w.m.cfg.PidsPerPod),
		LogDir:                w.logDir,
		Annotations:           map[string]string{noteResources: resourcesNote(p.Spec.Resources)},
	}
	if d, yes := w.guarded(); yes {
		cfg.FenceFile, cfg.FenceAfter = w.m.cfg.FenceFile, max(minLease, d)
	}
	if !p.Spec.HostNetwork {
		cfg.Hostname = hostname(p, w.m.cfg.DNS.Domain)
	}
	cfg.Sysctls = podSysctls(&p.Spec)
	return cfg
}

// dropSandbox removes the sandbox; its containers become history.
func (w *worker) dropSandbox(ctx context.Context) error {
	if w.sandbox == nil {
		return nil
	}
	if w.unlisten != nil {
		w.unlisten()
		w.unlisten = nil
	}
	var ids []string
	for _, s := range w.sandbox.Containers() {
		ids = append(ids, s.ID)
	}
	if err := w.sandbox.Remove(ctx); err != nil {
		w.listen(w.m.ctx)
		return err
	}
	for _, id := range append(ids, w.unsure...) {
		if err := w.m.cfg.Images.Unmount(id); err != nil {
			w.log.Warn("unmounting a container", "id", id, "err", err)
		}
	}
	if err := w.m.dropImageVolumes(w.uid); err != nil {
		w.log.Warn("unmounting the images that were volumes", "err", err)
	}
	w.sandbox, w.ips, w.unsure, w.imageVols = nil, nil, nil, nil
	w.m.mu.Lock()
	delete(w.m.adopted, string(w.uid))
	w.m.mu.Unlock()
	return nil
}

// anyStarted says that a container was started in this sandbox: then the
// volumes are complete.
func (w *worker) anyStarted() bool {
	return slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.cur != nil })
}

// statusIPs are the pod's addresses as the API has them.
func statusIPs(p *v1.Pod) (out []string) {
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// mainStarted says that a main container was started in this sandbox: then
// the init containers are behind the pod.
func (w *worker) mainStarted() bool {
	for _, c := range w.ctrs {
		if c.role == roleMain && c.cur != nil && !c.past {
			return true
		}
	}
	return false
}
