package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
)

// topology gives pods the zone and the region of their node as labels, when they
// are bound or come with a node: they read them through the downward API.
type topology struct {
	*admission.Handler
	objects Objects
}

var topologyLabels = []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion}

// Admit implements admission.MutationInterface.
func (t *topology) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != podsResource {
		return nil
	}
	var node string
	var labels *map[string]string
	switch a.GetSubresource() {
	case "":
		pod, err := as[*corev1.Pod](a.GetObject())
		if err != nil {
			return err
		}
		node, labels = pod.Spec.NodeName, &pod.Labels
	case "binding":
		b, err := as[*corev1.Binding](a.GetObject())
		if err != nil {
			return err
		}
		if b.Target.Kind == "Node" {
			node, labels = b.Target.Name, &b.Labels
		}
	}
	if node == "" {
		return nil
	}
	n, err := t.objects.Node(ctx, node)
	if apierrors.IsNotFound(err) {
		return nil // the pod waits for it
	}
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read node %s: %w", node, err))
	}
	for _, key := range topologyLabels {
		value, ok := n.Labels[key]
		if !ok {
			continue
		}
		if *labels == nil {
			*labels = map[string]string{}
		}
		(*labels)[key] = value
	}
	return nil
}
