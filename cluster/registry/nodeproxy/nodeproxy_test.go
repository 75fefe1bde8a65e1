package nodeproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	genericrest "k8s.io/apiserver/pkg/registry/generic/rest"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes/fake"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	criportforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// objects is a store of pods or services.
type objects map[string]runtime.Object

func (o objects) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	obj, ok := o[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
	}
	return obj, nil
}

// fakeNode is a node's HTTPS API that asks for a client certificate, echoes
// what is sent to commands and serves one port.
type fakeNode struct {
	*httptest.Server
	queries chan url.Values
}

type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

func (n *fakeNode) ExecInContainer(_ context.Context, name, _, container string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize, _ time.Duration) error {
	fmt.Fprintf(out, "%s/%s %s: ", name, container, strings.Join(cmd, " "))
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if errs != nil {
		fmt.Fprint(errs, "problem")
	}
	if cmd[0] == "fail" {
		return exitError(7)
	}
	return nil
}

func (n *fakeNode) AttachContainer(_ context.Context, name, _, container string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
	fmt.Fprintf(out, "attached to %s/%s: ", name, container)
	_, err := io.Copy(out, in)
	return err
}

func (n *fakeNode) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	if port != 80 {
		return fmt.Errorf("connection refused: port %d", port)
	}
	defer stream.Close()
	buf := make([]byte, 4)
	if _, err := io.ReadFull(stream, buf); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stream, "port %d got %s", port, buf)
	return err
}

func newFakeNode(t *testing.T) (*fakeNode, NodeAccess) {
	t.Helper()
	n := &fakeNode{queries: make(chan url.Values, 8)}
	mux := http.NewServeMux()
	mux.HandleFunc("/containerLogs/{ns}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		n.queries <- r.URL.Query()
		if r.PathValue("container") == "gone" {
			http.Error(w, "container is gone", http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "log of %s", r.PathValue("container"))
	})
	mux.HandleFunc("/exec/{ns}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		o, err := criremote.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criremote.ServeExec(w, r, n, r.PathValue("pod"), "", r.PathValue("container"), r.URL.Query()["command"], o, time.Minute, time.Minute, criremote.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/attach/{ns}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		o, err := criremote.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criremote.ServeAttach(w, r, n, r.PathValue("pod"), "", r.PathValue("container"), o, time.Minute, time.Minute, criremote.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/portForward/{ns}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		o, err := criportforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criportforward.ServePortForward(w, r, n, r.PathValue("pod"), "", o, time.Minute, time.Minute, criportforward.SupportedProtocols)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "node ok") })
	n.Server = httptest.NewUnstartedServer(mux)
	n.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	n.StartTLS()
	t.Cleanup(n.Close)

	roots := x509.NewCertPool()
	roots.AddCert(n.Certificate())
	host, port, err := net.SplitHostPort(n.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "wrong.invalid"}, {Type: corev1.NodeInternalIP, Address: host}}
	if _, err := fmt.Sscan(port, &node.Status.DaemonEndpoints.KubeletEndpoint.Port); err != nil {
		t.Fatal(err)
	}
	access, err := NewAccess(AccessConfig{
		Node: func(_ context.Context, name string) (*corev1.Node, error) {
			if name != "n" {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
			}
			return node, nil
		},
		TLS: func() *tls.Config { return &tls.Config{RootCAs: roots, Certificates: n.TLS.Certificates} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, access
}

func testPod(name, node string, containers ...string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	pod.Spec.NodeName = node
	for _, c := range containers {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: c})
	}
	return pod
}

func testPods() objects {
	many := testPod("many", "n", "a", "b")
	many.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	return objects{"one": testPod("one", "n", "a"), "many": many, "nowhere": testPod("nowhere", "", "a"), "lost": testPod("lost", "x", "a"), "gone": testPod("gone", "n", "gone")}
}

// responder writes an API error as a client sees it.
type responder struct{ w http.ResponseWriter }

func (r responder) Object(code int, _ runtime.Object) { r.w.WriteHeader(code) }
func (r responder) Error(err error) {
	code := http.StatusInternalServerError
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		code = int(status.Status().Code)
	}
	http.Error(r.w, err.Error(), code)
}

// apiServer serves c under /NAME/... and reads options as the API does.
func apiServer(t *testing.T, c rest.Connecter) *httptest.Server {
	t.Helper()
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	if err := AddConversions(s); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		options, subpath, key := c.NewConnectOptions()
		values := r.URL.Query()
		if subpath {
			values.Set(key, "/"+path)
		}
		if err := runtime.NewParameterCodec(s).DecodeParameters(values, corev1.SchemeGroupVersion, options); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		verb := map[string]string{"GET": "get", "POST": "create"}[r.Method]
		ctx := genericrequest.WithRequestInfo(r.Context(), &genericrequest.RequestInfo{IsResourceRequest: true, Verb: verb, Namespace: "default", Resource: "pods", Subresource: "exec", Name: name})
		ctx = genericrequest.WithUser(ctx, &user.DefaultInfo{Name: "u"})
		h, err := c.Connect(ctx, name, options, responder{w})
		if err != nil {
			responder{w}.Error(err)
			return
		}
		h.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(server.Close)
	return server
}

type executorFor func(c *clientrest.Config, u *url.URL) (remotecommand.Executor, error)

var protocols = map[string]executorFor{
	"SPDY": func(c *clientrest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(c, "POST", u)
	},
	"WebSocket": func(c *clientrest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(c, "GET", u.String())
	},
}

func stream(t *testing.T, server *httptest.Server, path string, make executorFor, stdin string) (stdout, stderr string, err error) {
	t.Helper()
	u, err := url.Parse(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	executor, err := make(&clientrest.Config{Host: server.URL}, u)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	o := remotecommand.StreamOptions{Stdout: &out}
	if strings.Contains(path, "stdin=") {
		o.Stdin = strings.NewReader(stdin)
	}
	if strings.Contains(path, "stderr=true") {
		o.Stderr = &errs
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = executor.StreamWithContext(ctx, o)
	return out.String(), errs.String(), err
}

func TestExec(t *testing.T) {
	_, access := newFakeNode(t)
	server := apiServer(t, NewExec(testPods(), access, nil))
	for name, protocol := range protocols {
		t.Run(name, func(t *testing.T) {
			out, errs, err := stream(t, server, "/one?command=cat&command=-v&stdin=true&stdout=true&stderr=true", protocol, "hello")
			if err != nil || out != "one/a cat -v: hello" || errs != "problem" {
				t.Errorf("got %q, %q, %v", out, errs, err)
			}
			_, _, err = stream(t, server, "/many?container=b&command=fail&stdout=true", protocol, "")
			var code exec.CodeExitError
			if !errors.As(err, &code) || code.Code != 7 {
				t.Errorf("exit code: got %v", err)
			}
			_, _, err = stream(t, server, "/many?command=ls&stdout=true", protocol, "")
			if want := "a container name must be specified for pod many, choose one of: [a b] or one of the init containers: [i]"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	_, access := newFakeNode(t)
	server := apiServer(t, NewAttach(testPods(), access, nil))
	for name, protocol := range protocols {
		t.Run(name, func(t *testing.T) {
			// stdout is wanted although nobody says so.
			out, _, err := stream(t, server, "/one?stdin=1&stderr=false", protocol, "hello")
			if err != nil || out != "attached to one/a: hello" {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
}

func TestStreamErrors(t *testing.T) {
	_, access := newFakeNode(t)
	server := apiServer(t, NewExec(testPods(), access, nil))
	for path, want := range map[string]string{
		"/none":                          `pods "none" not found`,
		"/nowhere":                       "pod nowhere does not have a host assigned",
		"/one?container=z":               "container z is not valid for pod one",
		"/lost":                          `nodes "x" not found`,
		"/one?stdin=true&command=no-up":  "Upgrade request required",
		"/one?stdout=true&tty=1&stdin=x": "Upgrade request required",
	} {
		resp, err := http.Post(server.URL+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode < 400 || !strings.Contains(string(body), want) {
			t.Errorf("%s: got %d %s, want %q", path, resp.StatusCode, body, want)
		}
	}
}

func TestWebSocketNeedsCreate(t *testing.T) {
	_, access := newFakeNode(t)
	var asked authorizer.Attributes
	deny := authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		asked = a
		return authorizer.DecisionNoOpinion, "not for you", nil
	})
	server := apiServer(t, NewExec(testPods(), access, deny))
	_, _, err := stream(t, server, "/one?command=ls&stdout=true", protocols["WebSocket"], "")
	if err == nil || !strings.Contains(err.Error(), "not for you") {
		t.Errorf("got %v", err)
	}
	if asked == nil || asked.GetVerb() != "create" || asked.GetSubresource() != "exec" || asked.GetUser().GetName() != "u" {
		t.Errorf("asked for %+v", asked)
	}
	if _, _, err := stream(t, server, "/one?command=ls&stdout=true", protocols["SPDY"], ""); err != nil {
		t.Errorf("POST has been authorized as create already: %v", err)
	}
}

func TestPortForward(t *testing.T) {
	_, access := newFakeNode(t)
	server := apiServer(t, NewPortForward(testPods(), access, nil))
	u, err := url.Parse(server.URL + "/one")
	if err != nil {
		t.Fatal(err)
	}
	config := &clientrest.Config{Host: server.URL}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(u, config)
	if err != nil {
		t.Fatal(err)
	}
	direct := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u)
	type opener func(stop, ready chan struct{}) (*portforward.PortForwarder, error)
	for name, open := range map[string]opener{
		"SPDY": func(stop, ready chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.NewOnAddresses(direct, []string{"127.0.0.1"}, []string{"0:80", "0:81"}, stop, ready, io.Discard, io.Discard)
		},
		"WebSocket": func(stop, ready chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.NewOnAddresses(tunnel, []string{"127.0.0.1"}, []string{"0:80", "0:81"}, stop, ready, io.Discard, io.Discard)
		},
	} {
		t.Run(name, func(t *testing.T) {
			stop, ready := make(chan struct{}), make(chan struct{})
			f, err := open(stop, ready)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- f.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-ended:
				t.Fatal(err)
			}
			ports, err := f.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{"port 80 got ping", ""} {
				c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i].Local))
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(c, "ping")
				got, _ := io.ReadAll(c) // a closed port ends the connection, however it likes
				c.Close()
				if string(got) != want {
					t.Errorf("port %d: got %q, want %q", ports[i].Remote, got, want)
				}
			}
			close(stop)
			<-ended
		})
	}
}

func TestLogs(t *testing.T) {
	node, access := newFakeNode(t)
	logs := NewLogs(testPods(), access)
	read := func(name string, o *corev1.PodLogOptions) (string, error) {
		obj, err := logs.Get(t.Context(), name, o)
		if err != nil {
			return "", err
		}
		in, flush, mime, err := obj.(*genericrest.LocationStreamer).InputStream(t.Context(), "", "")
		if err != nil || in == nil {
			return "", err
		}
		defer in.Close()
		if mime != "text/plain" || flush != o.Follow {
			t.Errorf("mime type %q, flush %v", mime, flush)
		}
		b, err := io.ReadAll(in)
		return string(b), err
	}
	tail, since := int64(5), int64(60)
	all := "All"
	got, err := read("many", &corev1.PodLogOptions{Container: "i", Follow: true, Previous: true, Timestamps: true, TailLines: &tail, SinceSeconds: &since, LimitBytes: &since, Stream: &all})
	if err != nil || got != "log of i" {
		t.Errorf("got %q, %v", got, err)
	}
	if q := (<-node.queries).Encode(); q != "follow=true&limitBytes=60&previous=true&sinceSeconds=60&stream=All&tailLines=5&timestamps=true" {
		t.Errorf("query %s", q)
	}
	when := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if _, err := read("one", &corev1.PodLogOptions{SinceTime: &when, InsecureSkipTLSVerifyBackend: true}); err != nil {
		t.Error(err)
	}
	if q := (<-node.queries).Get("sinceTime"); q != "2026-01-02T03:04:05Z" {
		t.Errorf("sinceTime %s", q)
	}
	if got, err := read("nowhere", &corev1.PodLogOptions{}); err != nil || got != "" {
		t.Errorf("pod without a node: got %q, %v", got, err)
	}
	minus, zero, odd := int64(-1), int64(0), "Odd"
	for want, c := range map[string]struct {
		pod string
		o   corev1.PodLogOptions
	}{
		"a container name must be specified for pod many, choose one of: [a b] or one of the init containers: [i]": {"many", corev1.PodLogOptions{}},
		"container z is not valid for pod one": {"one", corev1.PodLogOptions{Container: "z"}},
		`pods "none" not found`:                {"none", corev1.PodLogOptions{}},
		"container is gone":                    {"gone", corev1.PodLogOptions{}},
		`PodLogOptions "one" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0`:               {"one", corev1.PodLogOptions{TailLines: &minus}},
		`PodLogOptions "one" is invalid: limitBytes: Invalid value: 0: must be greater than 0`:                           {"one", corev1.PodLogOptions{LimitBytes: &zero}},
		`PodLogOptions "one" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0`:                         {"one", corev1.PodLogOptions{SinceSeconds: &zero}},
		"PodLogOptions \"one\" is invalid: []: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified": {"one", corev1.PodLogOptions{SinceSeconds: &since, SinceTime: &when}},
		`PodLogOptions "one" is invalid: stream: Unsupported value: "Odd": supported values: "All", "Stdout", "Stderr"`:  {"one", corev1.PodLogOptions{Stream: &odd}},
	} {
		if _, err := read(c.pod, &c.o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", c.pod, err, want)
		}
	}
}

// backend gives a transport on which every address leads to h.
func backend(t *testing.T, h http.HandlerFunc) http.RoundTripper {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}}
}

func get(t *testing.T, server *httptest.Server, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestProxies(t *testing.T) {
	_, access := newFakeNode(t)
	echo := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Host, r.URL.RequestURI()) })

	withIP := func(name, ip string, port int32) *corev1.Pod {
		pod := testPod(name, "n", "a")
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port}}
		pod.Status.PodIPs = []corev1.PodIP{{IP: ip}}
		return pod
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}}
	svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}, {Port: 90}}
	ready, http1, unnamed, target := true, "http", "", int32(8080)
	slices := fake.NewClientset(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}, {Addresses: []string{"10.0.0.7"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:     []discoveryv1.EndpointPort{{Name: &http1, Port: &target}, {Name: &unnamed, Port: &target}},
	}).DiscoveryV1()
	empty := svc.DeepCopy()
	empty.Name = "empty"

	pods := apiServer(t, NewPodProxy(objects{"p": withIP("p", "10.0.0.5", 8080), "own": withIP("own", "127.0.0.1", 80), "none": testPod("none", "n", "a")}, echo))
	services := apiServer(t, NewServiceProxy(objects{"web": svc, "empty": empty}, SlicesFrom(slices), echo))
	nodes := apiServer(t, NewNodeProxy(access, echo))
	for _, c := range []struct {
		server *httptest.Server
		path   string
		code   int
		want   string
	}{
		{pods, "/p/a/b/?x=1", 200, "/a/b/?x=1"},
		{pods, "/http:p:99/", 200, " /"},
		{pods, "/own/", 400, "address not allowed"},
		{pods, "/none/", 400, "address not allowed"},
		{pods, "/a:b:c:d/", 400, `invalid pod request "a:b:c:d"`},
		{services, "/web:http/x", 200, "/x"},
		{services, "/web:80/x", 200, "/x"},
		{services, "/web/x", 200, "/x"},
		{services, "/web:81/x", 503, `no service port 81 found for service "web"`},
		{services, "/web:other/x", 503, `no endpoints available for service "web"`},
		{services, "/empty:http/x", 503, `no endpoints available for service "empty"`},
		{nodes, "/n/healthz", 200, "node ok"},
		{nodes, "/n:9100/metrics", 400, "address not allowed"}, // the fake node is on loopback
		{nodes, "/x/healthz", 404, `nodes "x" not found`},
	} {
		if code, body := get(t, c.server, c.path); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: got %d %q, want %d %q", c.path, code, body, c.code, c.want)
		}
	}
}

func TestConversions(t *testing.T) {
	var o corev1.PodLogOptions
	err := fromQuery(url.Values{"follow": {"true"}, "previous": {"0"}, "tailLines": {"3"}, "sinceTime": {"2026-01-02T03:04:05Z"}, "unknown": {"x"}}, &o)
	if err != nil || !o.Follow || o.Previous || *o.TailLines != 3 || o.SinceTime.Year() != 2026 {
		t.Errorf("got %+v, %v", o, err)
	}
	if err := fromQuery(url.Values{"tailLines": {"many"}}, &o); err == nil {
		t.Error("a number that is none was accepted")
	}
	var p corev1.PodPortForwardOptions
	if err := fromQuery(url.Values{"ports": {"80", "81"}}, &p); err != nil || len(p.Ports) != 2 || p.Ports[1] != 81 {
		t.Errorf("got %+v, %v", p, err)
	}
}
