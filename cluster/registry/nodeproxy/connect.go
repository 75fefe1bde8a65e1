package nodeproxy

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"
)

// pods reads pods of the namespace of the request.
type pods struct{ rest.Getter }

func (p pods) pod(ctx context.Context, name string) (*corev1.Pod, error) {
	obj, err := p.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("read pod %s: unexpected object: %T", name, obj)
	}
	return pod, nil
}

// containerOf settles which container is meant: the one that is named, or the
// only one.
func containerOf(pod *corev1.Pod, name string) (string, error) {
	names, inits, ephemerals := containerNames(pod)
	if name != "" {
		for _, list := range [][]string{names, inits, ephemerals} {
			for _, n := range list {
				if n == name {
					return name, nil
				}
			}
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	switch len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
	}
	text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " "))
	if len(inits) > 0 {
		text += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(inits, " "))
	}
	if len(ephemerals) > 0 {
		text += fmt.Sprintf(" or one of the ephemeral containers: [%s]", strings.Join(ephemerals, " "))
	}
	return "", apierrors.NewBadRequest(text)
}

func containerNames(pod *corev1.Pod) (names, inits, ephemerals []string) {
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range pod.Spec.InitContainers {
		inits = append(inits, c.Name)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		ephemerals = append(ephemerals, c.Name)
	}
	return names, inits, ephemerals
}

// onNode gives the place of a pod's stream on its node.
func onNode(ctx context.Context, nodes NodeAccess, pod *corev1.Pod, query url.Values, kind string, rest ...string) (*url.URL, *Endpoint, error) {
	if pod.Spec.NodeName == "" {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	endpoint, err := nodes.NodeAPI(ctx, pod.Spec.NodeName)
	if err != nil {
		return nil, nil, err
	}
	location := *endpoint.URL
	location.Path = "/" + strings.Join(append([]string{kind, pod.Namespace, pod.Name}, rest...), "/")
	location.RawQuery = query.Encode()
	return &location, endpoint, nil
}

// newProxy forwards a request to location. With mustUpgrade, requests that do
// not upgrade the connection are refused; with wrap, answers are rewritten so
// that links in them lead back through the API server.
func newProxy(location *url.URL, transport http.RoundTripper, wrap, mustUpgrade bool, r rest.Responder) *proxy.UpgradeAwareHandler {
	return proxy.NewUpgradeAwareHandler(location, transport, wrap, mustUpgrade, proxy.NewErrorResponder(r))
}

// anyMethod is what the proxy subresources pass on.
var anyMethod = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
