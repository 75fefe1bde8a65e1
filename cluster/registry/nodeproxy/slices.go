package nodeproxy

import (
	"context"
	"fmt"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	apiproxy "k8s.io/apiserver/pkg/util/proxy"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
)

// SlicesFrom reads a service's EndpointSlices by client when they are needed:
// the proxy is used too rarely to keep a cache of them all.
func SlicesFrom(client discoveryclient.EndpointSlicesGetter) apiproxy.EndpointSliceGetter {
	return sliceReader{client}
}

type sliceReader struct {
	client discoveryclient.EndpointSlicesGetter
}

func (r sliceReader) GetEndpointSlices(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := r.client.EndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{discoveryv1.LabelServiceName: service}.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices of %s/%s: %w", namespace, service, err)
	}
	out := make([]*discoveryv1.EndpointSlice, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, &list.Items[i])
	}
	return out, nil
}
