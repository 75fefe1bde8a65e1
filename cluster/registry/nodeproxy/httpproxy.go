package nodeproxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/rest"
	apiproxy "k8s.io/apiserver/pkg/util/proxy"
)

// HTTPProxy serves pods/proxy, services/proxy or nodes/proxy: HTTP and
// WebSocket requests passed on to what the name in the path stands for. Names
// may be written as [scheme:]name[:port].
type HTTPProxy struct {
	options func() runtime.Object
	path    func(options runtime.Object) (string, bool)
	locate  func(ctx context.Context, id string) (*url.URL, http.RoundTripper, error)
}

var _ rest.Connecter = (*HTTPProxy)(nil)

// New implements rest.Storage. Nothing is ever stored under it.
func (p *HTTPProxy) New() runtime.Object { return p.options() }

// Destroy implements rest.Storage.
func (p *HTTPProxy) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (p *HTTPProxy) ConnectMethods() []string { return anyMethod }

// NewConnectOptions implements rest.Connecter: the rest of the path goes to the
// field "path".
func (p *HTTPProxy) NewConnectOptions() (runtime.Object, bool, string) {
	return p.options(), true, "path"
}

// Connect implements rest.Connecter.
func (p *HTTPProxy) Connect(ctx context.Context, id string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	path, ok := p.path(options)
	if !ok {
		return nil, fmt.Errorf("proxy to %s: invalid options object: %#v", id, options)
	}
	location, transport, err := p.locate(ctx, id)
	if err != nil {
		return nil, err
	}
	location.Path = utilnet.JoinPreservingTrailingSlash(location.Path, path)
	return newProxy(location, transport, true, false, r), nil
}

// newBackendTransport reaches pods and services. Their certificates are not
// verified: no CA that the API server knows signs them.
func newBackendTransport(t http.RoundTripper) http.RoundTripper {
	if t != nil {
		return t
	}
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
	}
}

// NewPodProxy serves pods/proxy. A nil transport makes one that trusts every
// backend.
func NewPodProxy(getter rest.Getter, transport http.RoundTripper) *HTTPProxy {
	read, transport := pods{getter}, newBackendTransport(transport)
	return &HTTPProxy{
		options: func() runtime.Object { return &corev1.PodProxyOptions{} },
		path: func(o runtime.Object) (string, bool) {
			po, ok := o.(*corev1.PodProxyOptions)
			if !ok {
				return "", false
			}
			return po.Path, true
		},
		locate: func(ctx context.Context, id string) (*url.URL, http.RoundTripper, error) {
			scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
			if !ok {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid pod request %q", id))
			}
			pod, err := read.pod(ctx, name)
			if err != nil {
				return nil, nil, err
			}
			location, err := podLocation(pod, scheme, port)
			return location, transport, err
		},
	}
}

// podLocation is the pod's address with the port that was asked for, else with
// the first port a container names.
func podLocation(pod *corev1.Pod, scheme, port string) (*url.URL, error) {
	if port == "" {
		for _, c := range pod.Spec.Containers {
			if len(c.Ports) > 0 {
				port = strconv.Itoa(int(c.Ports[0].ContainerPort))
				break
			}
		}
	}
	var ip string
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	if !proxyable(ip) {
		return nil, apierrors.NewBadRequest("address not allowed")
	}
	location := &url.URL{Scheme: scheme, Host: ip}
	switch {
	case port != "":
		location.Host = net.JoinHostPort(ip, port)
	case net.ParseIP(ip).To4() == nil:
		location.Host = "[" + ip + "]"
	}
	return location, nil
}

// proxyable keeps requests away from the API server's own host.
func proxyable(address string) bool {
	ip := net.ParseIP(address)
	return ip != nil && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsMulticast() && !ip.IsUnspecified()
}

// NewServiceProxy serves services/proxy: the request goes to an endpoint of the
// service that is ready, chosen at random.
func NewServiceProxy(services rest.Getter, slices apiproxy.EndpointSliceGetter, transport http.RoundTripper) *HTTPProxy {
	transport = newBackendTransport(transport)
	return &HTTPProxy{
		options: func() runtime.Object { return &corev1.ServiceProxyOptions{} },
		path: func(o runtime.Object) (string, bool) {
			so, ok := o.(*corev1.ServiceProxyOptions)
			if !ok {
				return "", false
			}
			return so.Path, true
		},
		locate: func(ctx context.Context, id string) (*url.URL, http.RoundTripper, error) {
			scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
			if !ok {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", id))
			}
			obj, err := services.Get(ctx, name, &metav1.GetOptions{})
			if err != nil {
				return nil, nil, err
			}
			svc, ok := obj.(*corev1.Service)
			if !ok {
				return nil, nil, fmt.Errorf("read service %s: unexpected object: %T", name, obj)
			}
			location, err := serviceLocation(svc, slices, scheme, port)
			return location, transport, err
		},
	}
}

func serviceLocation(svc *corev1.Service, slices apiproxy.EndpointSliceGetter, scheme, port string) (*url.URL, error) {
	// A port by number stands for the name under which endpoints have it.
	if n, err := strconv.ParseInt(port, 10, 32); err == nil {
		found := false
		for _, p := range svc.Spec.Ports {
			if p.Port == int32(n) {
				port, found = p.Name, true
				break
			}
		}
		if !found {
			return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, svc.Name))
		}
	}
	list, err := slices.GetEndpointSlices(svc.Namespace, svc.Name)
	if err != nil {
		return nil, fmt.Errorf("endpoints of service %s: %w", svc.Name, err)
	}
	family := corev1.IPFamilyUnknown
	if len(svc.Spec.IPFamilies) > 0 {
		family = svc.Spec.IPFamilies[0]
	}
	host, err := apiproxy.RandomEndpoint(svc.Name, list, port, family, func(e *discoveryv1.Endpoint) bool {
		return len(e.Addresses) > 0 && proxyable(e.Addresses[0])
	})
	if err != nil {
		return nil, err
	}
	return &url.URL{Scheme: scheme, Host: host}, nil
}

// NewNodeProxy serves nodes/proxy: without a port, or with the port of the
// node's own API, the request goes there with the API server's certificate;
// other ports of the node are reached as plain backends.
func NewNodeProxy(nodes NodeAccess, transport http.RoundTripper) *HTTPProxy {
	transport = newBackendTransport(transport)
	return &HTTPProxy{
		options: func() runtime.Object { return &corev1.NodeProxyOptions{} },
		path: func(o runtime.Object) (string, bool) {
			no, ok := o.(*corev1.NodeProxyOptions)
			if !ok {
				return "", false
			}
			return no.Path, true
		},
		locate: func(ctx context.Context, id string) (*url.URL, http.RoundTripper, error) {
			scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
			if !ok {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", id))
			}
			endpoint, err := nodes.NodeAPI(ctx, name)
			if err != nil {
				return nil, nil, err
			}
			location := *endpoint.URL
			if port == "" || port == location.Port() {
				return &location, endpoint.Transport, nil
			}
			if !proxyable(location.Hostname()) {
				return nil, nil, apierrors.NewBadRequest("address not allowed")
			}
			return &url.URL{Scheme: scheme, Host: net.JoinHostPort(location.Hostname(), port)}, transport, nil
		},
	}
}
