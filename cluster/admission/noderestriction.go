package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"

	"github.com/skiff-sh/skiff/cluster/auth"
)

// nodeRestriction keeps an agent's writes to its own Node, to pods bound to
// it, and away from labels that place workloads; and its tokens to those that its
// pods mount.
type nodeRestriction struct {
	*admission.Handler
	objects Objects
}

// Admit implements admission.MutationInterface. It changes nothing, but sees a
// request for a token as the node has sent it, before defaults.
func (n *nodeRestriction) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := auth.NodeName(a.GetUserInfo())
	if !ok || a.GetResource().GroupResource() != accountsResource || a.GetSubresource() != "token" {
		return nil
	}
	return n.token(ctx, node, a)
}

// token lets a node have tokens that end with one of its pods, and are for whom
// that pod wants them.
func (n *nodeRestriction) token(ctx context.Context, node string, a admission.Attributes) error {
	req, err := as[*authenticationv1.TokenRequest](a.GetObject())
	if err != nil {
		return err
	}
	ref := req.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return admission.NewForbidden(a, errors.New("node requested token not bound to a pod"))
	case ref.UID == "":
		return admission.NewForbidden(a, errors.New("node requested token with a pod binding without a uid"))
	}
	pod, err := n.podOf(ctx, a.GetNamespace(), ref.Name, func(p *corev1.Pod) bool { return p.UID == ref.UID && p.Spec.NodeName == node })
	switch {
	case apierrors.IsNotFound(err):
		return err
	case err != nil:
		return admission.NewForbidden(a, err)
	case ref.UID != pod.UID:
		return admission.NewForbidden(a, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	case pod.Spec.NodeName != node:
		return admission.NewForbidden(a, errors.New("node requested token bound to a pod scheduled on a different node"))
	case len(req.Spec.Audiences) > 1:
		return admission.NewForbidden(a, errors.New("node may only request 0 or 1 audiences"))
	}
	audience := ""
	if len(req.Spec.Audiences) == 1 {
		audience = req.Spec.Audiences[0]
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
		}) {
			return nil
		}
	}
	return admission.NewForbidden(a, fmt.Errorf("audience %q not found in pod spec volume", audience))
}

// podOf reads a pod of which the node says that it is good. This server's copy may
// be behind the one from which the node knows that: then it is read once more.
func (n *nodeRestriction) podOf(ctx context.Context, namespace, name string, good func(*corev1.Pod) bool) (*corev1.Pod, error) {
	pod, err := n.objects.Pod(ctx, namespace, name)
	if err != nil || good(pod) {
		return pod, err
	}
	if o, ok := n.objects.(interface{ Refresh(context.Context) bool }); !ok || !o.Refresh(ctx) {
		return pod, nil
	}
	return n.objects.Pod(ctx, namespace, name)
}

// Validate implements admission.ValidationInterface.
func (n *nodeRestriction) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := auth.NodeName(a.GetUserInfo())
	if !ok {
		return nil
	}
	switch a.GetResource().GroupResource() {
	case podsResource:
		return n.pod(ctx, node, a)
	case nodesResource:
		return n.node(node, a)
	}
	return nil
}

func (n *nodeRestriction) pod(ctx context.Context, node string, a admission.Attributes) error {
	switch {
	case a.GetOperation() == admission.Create && a.GetSubresource() == "":
		pod, err := as[*corev1.Pod](a.GetObject())
		if err != nil {
			return err
		}
		if !mirrorPod(pod) {
			return admission.NewForbidden(a, fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node))
		}
		if pod.Spec.NodeName != node {
			return admission.NewForbidden(a, fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node))
		}
		if err := n.ownedBy(ctx, node, pod); err != nil {
			return admission.NewForbidden(a, err)
		}
		if pod.Spec.ServiceAccountName != "" {
			return admission.NewForbidden(a, fmt.Errorf("node %q can not create pods that reference a service account", node))
		}
		if refs := referencesAnything(pod); refs != "" {
			return admission.NewForbidden(a, fmt.Errorf("node %q can not create pods that reference %s", node, refs))
		}
		return nil
	case a.GetSubresource() == "eviction":
		name := a.GetName()
		if e, ok := a.GetObject().(*policyv1.Eviction); ok && name == "" {
			name = e.Name
		}
		return n.ownPod(ctx, node, a, name, "evict")
	case a.GetOperation() == admission.Delete:
		return n.ownPod(ctx, node, a, a.GetName(), "delete")
	case a.GetSubresource() == "status":
		pod, err := as[*corev1.Pod](a.GetOldObject())
		if err != nil {
			return err
		}
		if pod.Spec.NodeName != node {
			return admission.NewForbidden(a, fmt.Errorf("node %q can only update pod status for pods with spec.nodeName set to itself", node))
		}
		if cur, err := as[*corev1.Pod](a.GetObject()); err != nil {
			return err
		} else if !equality.Semantic.DeepEqual(pod.Labels, cur.Labels) {
			return admission.NewForbidden(a, fmt.Errorf("node %q cannot update labels through pod status", node))
		}
		return nil
	}
	return admission.NewForbidden(a, fmt.Errorf("unexpected operation %q, subresource %q", a.GetOperation(), a.GetSubresource()))
}

// ownedBy checks that a mirror pod goes with its Node.
func (n *nodeRestriction) ownedBy(ctx context.Context, node string, pod *corev1.Pod) error {
	if len(pod.OwnerReferences) != 1 {
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	}
	owner := pod.OwnerReferences[0]
	switch {
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	case owner.Controller == nil || !*owner.Controller:
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	case owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion:
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	obj, err := n.objects.Node(ctx, node)
	if err != nil {
		return err
	}
	if owner.UID != obj.UID {
		return fmt.Errorf("node %s UID mismatch: expected %s got %s", node, owner.UID, obj.UID)
	}
	return nil
}

func (n *nodeRestriction) ownPod(ctx context.Context, node string, a admission.Attributes, name, verb string) error {
	pod, err := n.podOf(ctx, a.GetNamespace(), name, func(p *corev1.Pod) bool { return p.Spec.NodeName == node })
	if apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	if pod.Spec.NodeName != node {
		return admission.NewForbidden(a, fmt.Errorf("node %q can only %s pods with spec.nodeName set to itself", node, verb))
	}
	return nil
}

func referencesAnything(p *corev1.Pod) string {
	for _, resource := range []string{"secrets", "configmaps", "persistentvolumeclaims"} {
		if auth.ReferencesAny(p, resource) {
			return resource
		}
	}
	return ""
}

func (n *nodeRestriction) node(node string, a admission.Attributes) error {
	name := a.GetName()
	var cur, old *corev1.Node
	if a.GetOperation() != admission.Delete {
		var err error
		if cur, err = as[*corev1.Node](a.GetObject()); err != nil {
			return err
		}
		name = cur.Name
	}
	if name != node {
		return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify node %q", node, name))
	}
	if a.GetOperation() == admission.Delete {
		return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to delete itself", node))
	}
	if a.GetOperation() == admission.Update {
		var err error
		if old, err = as[*corev1.Node](a.GetOldObject()); err != nil {
			return err
		}
		if a.GetSubresource() == "" && !equality.Semantic.DeepEqual(cur.Spec.Taints, old.Spec.Taints) {
			return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify taints", node))
		}
		// By an owner that does not exist a node would have itself deleted.
		if !equality.Semantic.DeepEqual(cur.OwnerReferences, old.OwnerReferences) {
			return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify ownerReferences", node))
		}
	} else {
		old = &corev1.Node{}
	}
	server := slices.Contains(a.GetUserInfo().GetGroups(), auth.ServersGroup)
	denied := slices.DeleteFunc(slices.Sorted(maps.Keys(changed(cur.Labels, old.Labels))), func(k string) bool { return auth.MayLabel(k, server) })
	if len(denied) > 0 {
		return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify labels: %s", node, strings.Join(denied, ", ")))
	}
	return nil
}

// changed gives the keys that differ between a and b.
func changed(a, b map[string]string) map[string]bool {
	out := map[string]bool{}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			out[k] = true
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out[k] = true
		}
	}
	return out
}
