package nodeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	apiproxy "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Stream serves pods/exec, pods/attach or pods/portforward: a connection that
// is upgraded to SPDY or WebSocket and led to the pod's node. Nodes speak SPDY;
// the newer WebSocket protocols are translated here.
type Stream struct {
	kind       string
	pods       pods
	nodes      NodeAccess
	authorizer authorizer.Authorizer
	options    func() runtime.Object
	connect    func(s *Stream, ctx context.Context, pod *corev1.Pod, options runtime.Object, r rest.Responder) (http.Handler, error)
}

var (
	_ rest.Connecter = (*Stream)(nil)
	_ rest.Storage   = (*Stream)(nil)
)

// NewExec serves pods/exec. A WebSocket starts with a GET; when a is not nil,
// it has to allow its sender the create that the same request by POST needs.
func NewExec(getter rest.Getter, nodes NodeAccess, a authorizer.Authorizer) *Stream {
	return &Stream{"exec", pods{getter}, nodes, a, func() runtime.Object { return &corev1.PodExecOptions{} }, (*Stream).exec}
}

// NewAttach serves pods/attach; a is as for NewExec.
func NewAttach(getter rest.Getter, nodes NodeAccess, a authorizer.Authorizer) *Stream {
	return &Stream{"attach", pods{getter}, nodes, a, func() runtime.Object { return &corev1.PodAttachOptions{} }, (*Stream).attach}
}

// NewPortForward serves pods/portforward; a is as for NewExec.
func NewPortForward(getter rest.Getter, nodes NodeAccess, a authorizer.Authorizer) *Stream {
	return &Stream{"portforward", pods{getter}, nodes, a, func() runtime.Object { return &corev1.PodPortForwardOptions{} }, (*Stream).portForward}
}

// New implements rest.Storage. Nothing is ever stored under it.
func (s *Stream) New() runtime.Object { return s.options() }

// Destroy implements rest.Storage.
func (s *Stream) Destroy() {}

// NewConnectOptions implements rest.Connecter.
func (s *Stream) NewConnectOptions() (runtime.Object, bool, string) { return s.options(), false, "" }

// ConnectMethods implements rest.Connecter: POST upgrades to SPDY, GET to
// WebSocket.
func (s *Stream) ConnectMethods() []string { return []string{"GET", "POST"} }

// Connect implements rest.Connecter.
func (s *Stream) Connect(ctx context.Context, name string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	if err := s.mayCreate(ctx, name); err != nil {
		return nil, err
	}
	pod, err := s.pods.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.connect(s, ctx, pod, options, r)
}

// mayCreate asks for the create permission where the request came as a get, so
// that reading rights do not give a shell.
func (s *Stream) mayCreate(ctx context.Context, name string) error {
	info, ok := genericrequest.RequestInfoFrom(ctx)
	if s.authorizer == nil || !ok || info.Verb != "get" {
		return nil
	}
	user, _ := genericrequest.UserFrom(ctx)
	decision, reason, err := s.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: user, Verb: "create", Namespace: info.Namespace, APIGroup: info.APIGroup, APIVersion: info.APIVersion,
		Resource: info.Resource, Subresource: info.Subresource, Name: name, ResourceRequest: true, Path: info.Path,
	})
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err == nil {
		err = errors.New(reason)
	}
	return apierrors.NewForbidden(schema.GroupResource{Resource: "pods/" + s.kind}, name, fmt.Errorf("create is needed to open a WebSocket: %w", err))
}

func (s *Stream) exec(ctx context.Context, pod *corev1.Pod, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodExecOptions)
	if !ok {
		return nil, fmt.Errorf("exec in pod %s: invalid options object: %#v", pod.Name, options)
	}
	query := streamQuery(o.Stdin, o.Stdout, o.Stderr, o.TTY)
	for _, c := range o.Command {
		query.Add(corev1.ExecCommandParam, c)
	}
	return s.remote(ctx, pod, o.Container, query, apiproxy.Options{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY}, r)
}

func (s *Stream) attach(ctx context.Context, pod *corev1.Pod, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodAttachOptions)
	if !ok {
		return nil, fmt.Errorf("attach to pod %s: invalid options object: %#v", pod.Name, options)
	}
	query := streamQuery(o.Stdin, o.Stdout, o.Stderr, o.TTY)
	return s.remote(ctx, pod, o.Container, query, apiproxy.Options{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY}, r)
}

// streamQuery says in the node's words which streams are wanted.
func streamQuery(stdin, stdout, stderr, tty bool) url.Values {
	query := url.Values{}
	for name, set := range map[string]bool{
		corev1.ExecStdinParam: stdin, corev1.ExecStdoutParam: stdout, corev1.ExecStderrParam: stderr, corev1.ExecTTYParam: tty,
	} {
		if set {
			query.Set(name, "1")
		}
	}
	return query
}

func (s *Stream) remote(ctx context.Context, pod *corev1.Pod, container string, query url.Values, o apiproxy.Options, r rest.Responder) (http.Handler, error) {
	container, err := containerOf(pod, container)
	if err != nil {
		return nil, err
	}
	location, endpoint, err := onNode(ctx, s.nodes, pod, query, s.kind, container)
	if err != nil {
		return nil, err
	}
	direct := newProxy(location, endpoint.Transport, false, true, r)
	translated := apiproxy.NewStreamTranslatorHandler(location, endpoint.Transport, 0, o)
	return apiproxy.NewTranslatingHandler(direct, translated, wsstream.IsWebSocketRequestWithStreamCloseProtocol), nil
}

func (s *Stream) portForward(ctx context.Context, pod *corev1.Pod, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodPortForwardOptions)
	if !ok {
		return nil, fmt.Errorf("port-forward to pod %s: invalid options object: %#v", pod.Name, options)
	}
	query := url.Values{}
	for _, port := range o.Ports {
		query.Add(corev1.PortHeader, fmt.Sprint(port))
	}
	location, endpoint, err := onNode(ctx, s.nodes, pod, query, "portForward")
	if err != nil {
		return nil, err
	}
	direct := newProxy(location, endpoint.Transport, false, true, r)
	return apiproxy.NewTranslatingHandler(direct, apiproxy.NewTunnelingHandler(direct), wsstream.IsWebSocketRequestWithTunnelingProtocol), nil
}
