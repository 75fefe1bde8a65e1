package service

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

// healthServer answers load balancers that ask, on a service's
// healthCheckNodePort, whether this node has an endpoint of it.
type healthServer struct {
	log *slog.Logger

	mu    sync.Mutex
	ports map[string]*healthPort // by namespace/name
	wg    sync.WaitGroup
}

type healthPort struct {
	port   int32
	server *http.Server

	mu    sync.Mutex
	reply healthReply
}

type healthReply struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func newHealthServer(log *slog.Logger) *healthServer {
	return &healthServer{log: log, ports: map[string]*healthPort{}}
}

// localCount counts the ready endpoints on a node, each address once.
func localCount(epSlices []*discovery.EndpointSlice, node string) int {
	seen := map[string]bool{}
	for _, s := range epSlices {
		if notForProxies(s) {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if deref(e.NodeName) == node && isTrue(e.Conditions.Ready, true) && len(e.Addresses) > 0 {
				seen[e.Addresses[0]] = true
			}
		}
	}
	return len(seen)
}

// set opens, updates or closes (nil service) the port of a service.
func (h *healthServer) set(name string, svc *v1.Service, local int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	want := int32(0)
	if svc != nil && svc.Spec.Type == v1.ServiceTypeLoadBalancer &&
		svc.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal {
		want = svc.Spec.HealthCheckNodePort
	}
	p := h.ports[name]
	if p != nil && p.port != want {
		_ = p.server.Close()
		delete(h.ports, name)
		p = nil
	}
	if want == 0 {
		return
	}
	if p == nil {
		p = &healthPort{port: want}
		p.server = &http.Server{Addr: ":" + strconv.Itoa(int(want)), Handler: p, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
		h.ports[name] = p
		h.wg.Go(func() {
			if err := p.server.ListenAndServe(); err != nil && err != http.ErrServerClosed {
				h.log.Warn("health check port of a service is not served", "service", name, "port", want, "error", err)
			}
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reply.Service.Namespace, p.reply.Service.Name = svc.Namespace, svc.Name
	p.reply.LocalEndpoints, p.reply.ServiceProxyHealthy = local, true
}

func (p *healthPort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	reply := p.reply
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if reply.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(reply)
}

// keep closes the ports of services that are not wanted.
func (h *healthServer) keep(wanted func(name string) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, p := range h.ports {
		if !wanted(name) {
			_ = p.server.Close()
			delete(h.ports, name)
		}
	}
}

func (h *healthServer) close() {
	h.keep(func(string) bool { return false })
	h.wg.Wait()
}
