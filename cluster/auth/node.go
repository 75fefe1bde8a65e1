package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/component-helpers/storage/ephemeral"
	kubeletapis "k8s.io/kubelet/pkg/apis"
)

// Names by which a node's agent is known.
const (
	NodeUserPrefix = "system:node:"
	NodesGroup     = "system:nodes"
	// ServersGroup is that of the nodes in the processes of servers: no certificate
	// or token has it, a server impersonates its own node.
	ServersGroup = "skiff:servers"
)

// NodeName gives the node that u is the agent of.
func NodeName(u user.Info) (string, bool) {
	name, ok := strings.CutPrefix(u.GetName(), NodeUserPrefix)
	return name, ok && name != "" && slices.Contains(u.GetGroups(), NodesGroup)
}

// MayLabel says whether a node may put, change and remove the label key of its own
// Node object. An agent has those labels of Kubernetes that kubelet has: by others,
// such as roles, workloads are kept from nodes. Who has a server has the cluster,
// so servers only leave alone what is an administrator's by its very name.
func MayLabel(key string, server bool) bool {
	domain, _, _ := strings.Cut(key, "/")
	in := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
	switch {
	case domain == key:
		return true
	case in(corev1.LabelNamespaceNodeRestriction):
		return false
	case in("kubernetes.io"), in("k8s.io"):
		return server || kubeletapis.IsKubeletLabel(key)
	}
	return true
}

// Node authorizes agents: rules that all nodes have, and the Secrets,
// ConfigMaps, claims and tokens of pods that are bound to the asking node.
//
// It reads the pods at the moment of the question from this server's own state.
// A node may have heard of its new pod from a server that is ahead of this one:
// before it is refused what that pod needs, the state is brought up to date.
type Node struct {
	authorizer.AuthorizerFunc
	objects Objects
}

// NewNode decides on objects.
func NewNode(objects Objects) *Node {
	n := &Node{objects: objects}
	n.AuthorizerFunc = n.authorize
	return n
}

// nodeRules is what every node may do whatever its pods are. NodeRestriction
// (package admission) narrows writes to the node's own objects.
var nodeRules = []rbacv1.PolicyRule{
	rule("create", "authentication.k8s.io", "tokenreviews"),
	rule("create", "authorization.k8s.io", "subjectaccessreviews", "localsubjectaccessreviews"),
	rule("get list watch", "", "services", "nodes", "endpoints", "namespaces"),
	rule("create update patch delete", "", "nodes"),
	rule("update patch", "", "nodes/status"),
	rule("create update patch", "", "events"),
	rule("create update patch", "events.k8s.io", "events"),
	rule("create delete", "", "pods"),
	rule("update patch", "", "pods/status"),
	rule("create", "", "pods/eviction"),
	rule("get list watch", "node.k8s.io", "runtimeclasses"),
	rule("get list watch", "discovery.k8s.io", "endpointslices"),
	urls("put", "/skiff/v1/lease"),
	urls("post", "/skiff/v1/leave"),
	urls("get", "/skiff/v1/upgrade/member"),
	urls("post", "/skiff/v1/upgrade/member"),
	urls("get", "/skiff/v1/upgrade/binary/*"),
}

func rule(verbs, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), APIGroups: []string{group}, Resources: resources}
}

func (n *Node) authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	node, ok := NodeName(a.GetUser())
	if !ok {
		return authorizer.DecisionNoOpinion, "", nil
	}
	decision, reason, err := n.decide(ctx, node, a)
	if reason == noRelationship(node) {
		if o, ok := n.objects.(interface{ Refresh(context.Context) bool }); ok && o.Refresh(ctx) {
			return n.decide(ctx, node, a)
		}
	}
	return decision, reason, err
}

// noRelationship is upstream's reason.
func noRelationship(node string) string {
	return fmt.Sprintf("no relationship found between node %q and this object", node)
}

func (n *Node) decide(ctx context.Context, node string, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.IsResourceRequest() {
		switch a.GetAPIGroup() + "/" + a.GetResource() {
		case "/pods":
			if a.GetSubresource() == "" && a.IsReadOnly() {
				return n.readPods(ctx, node, a)
			}
		case "/secrets", "/configmaps", "/persistentvolumeclaims":
			return n.readReferenced(ctx, node, a)
		case "/persistentvolumes":
			return n.readVolume(ctx, node, a)
		case "/serviceaccounts":
			return n.serviceAccount(ctx, node, a)
		case "coordination.k8s.io/leases":
			if a.GetNamespace() == corev1.NamespaceNodeLease && (a.GetName() == node || a.GetVerb() == "create") {
				return authorizer.DecisionAllow, "", nil
			}
			return authorizer.DecisionNoOpinion, "can only access node lease with the same name as the requesting node", nil
		}
	}
	for _, r := range nodeRules {
		if allows(r, a) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// readPods lets a node read the pods bound to it and no others.
func (n *Node) readPods(ctx context.Context, node string, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetVerb() != "get" {
		if reqs, err := a.GetFieldSelector(); err == nil && requires(reqs, "spec.nodeName", node) {
			return authorizer.DecisionAllow, "", nil
		}
		return authorizer.DecisionNoOpinion, fmt.Sprintf("can only list/watch pods with spec.nodeName field selector of %q", node), nil
	}
	pod, err := n.objects.Pod(ctx, a.GetNamespace(), a.GetName())
	if err == nil && pod.Spec.NodeName == node {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, noRelationship(node), nil
}

func requires(reqs fields.Requirements, key, value string) bool {
	return slices.ContainsFunc(reqs, func(r fields.Requirement) bool {
		return r.Field == key && r.Value == value && (r.Operator == "=" || r.Operator == "==")
	})
}

func (n *Node) readReferenced(ctx context.Context, node string, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if !a.IsReadOnly() || a.GetSubresource() != "" {
		return authorizer.DecisionNoOpinion, "can only read resources of this type", nil
	}
	if a.GetName() == "" || a.GetNamespace() == "" {
		return authorizer.DecisionNoOpinion, "can only read namespaced object of this type by name", nil
	}
	return n.ifAnyPod(ctx, node, a.GetNamespace(), func(p *corev1.Pod) bool {
		return References(p, a.GetResource(), a.GetName())
	})
}

// readVolume lets a node read the volumes of the claims of its pods.
func (n *Node) readVolume(ctx context.Context, node string, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetVerb() != "get" || a.GetSubresource() != "" || a.GetName() == "" {
		return authorizer.DecisionNoOpinion, "can only get individual resources of this type", nil
	}
	v, err := n.objects.Volume(ctx, a.GetName())
	if err != nil || v.Spec.ClaimRef == nil {
		return authorizer.DecisionNoOpinion, noRelationship(node), nil
	}
	ref := v.Spec.ClaimRef
	return n.ifAnyPod(ctx, node, ref.Namespace, func(p *corev1.Pod) bool { return References(p, "persistentvolumeclaims", ref.Name) })
}

// serviceAccount lets a node read the accounts of its pods (their
// imagePullSecrets) and request their tokens.
func (n *Node) serviceAccount(ctx context.Context, node string, a authorizer.Attributes) (authorizer.Decision, string, error) {
	token := a.GetVerb() == "create" && a.GetSubresource() == "token"
	read := a.IsReadOnly() && a.GetSubresource() == ""
	if !token && !read || a.GetName() == "" || a.GetNamespace() == "" {
		return authorizer.DecisionNoOpinion, "can only create tokens for individual service accounts", nil
	}
	return n.ifAnyPod(ctx, node, a.GetNamespace(), func(p *corev1.Pod) bool { return p.Spec.ServiceAccountName == a.GetName() })
}

func (n *Node) ifAnyPod(ctx context.Context, node, namespace string, match func(*corev1.Pod) bool) (authorizer.Decision, string, error) {
	pods, err := n.objects.Pods(ctx, namespace)
	if err != nil {
		return authorizer.DecisionNoOpinion, "", fmt.Errorf("read pods of node %s: %w", node, err)
	}
	for i := range pods {
		if pods[i].Spec.NodeName == node && match(&pods[i]) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, noRelationship(node), nil
}

// References tells whether the pod's spec names the object; resource is
// "secrets", "configmaps" or "persistentvolumeclaims".
func References(p *corev1.Pod, resource, name string) bool {
	found := false
	visitReferences(p, func(r, n string) {
		found = found || r == resource && n == name
	})
	return found
}

// ReferencesAny tells whether the pod's spec names any object of the resource.
func ReferencesAny(p *corev1.Pod, resource string) bool {
	found := false
	visitReferences(p, func(r, _ string) { found = found || r == resource })
	return found
}

func visitReferences(p *corev1.Pod, visit func(resource, name string)) {
	s := &p.Spec
	for _, r := range s.ImagePullSecrets {
		visit("secrets", r.Name)
	}
	envs := func(env []corev1.EnvVar, from []corev1.EnvFromSource) {
		for _, f := range from {
			if f.SecretRef != nil {
				visit("secrets", f.SecretRef.Name)
			}
			if f.ConfigMapRef != nil {
				visit("configmaps", f.ConfigMapRef.Name)
			}
		}
		for _, e := range env {
			if v := e.ValueFrom; v != nil && v.SecretKeyRef != nil {
				visit("secrets", v.SecretKeyRef.Name)
			}
			if v := e.ValueFrom; v != nil && v.ConfigMapKeyRef != nil {
				visit("configmaps", v.ConfigMapKeyRef.Name)
			}
		}
	}
	for _, c := range s.InitContainers {
		envs(c.Env, c.EnvFrom)
	}
	for _, c := range s.Containers {
		envs(c.Env, c.EnvFrom)
	}
	for _, c := range s.EphemeralContainers {
		envs(c.Env, c.EnvFrom)
	}
	for _, v := range s.Volumes {
		switch {
		case v.Secret != nil:
			visit("secrets", v.Secret.SecretName)
		case v.ConfigMap != nil:
			visit("configmaps", v.ConfigMap.Name)
		case v.PersistentVolumeClaim != nil:
			visit("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			visit("persistentvolumeclaims", ephemeral.VolumeClaimName(p, &v))
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.Secret != nil {
					visit("secrets", src.Secret.Name)
				}
				if src.ConfigMap != nil {
					visit("configmaps", src.ConfigMap.Name)
				}
			}
		}
	}
}
