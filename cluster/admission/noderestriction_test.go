package admission

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/skiff-sh/skiff/cluster/auth"
)

// A node gets the tokens that its pods mount, and none that outlive the pod or are
// for somebody else.
func TestNodeRequestsTokens(t *testing.T) {
	mine := pod(func(p *corev1.Pod) {
		p.UID, p.Spec.NodeName = "1", "n1"
		source := func(audience string) corev1.VolumeProjection {
			return corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: audience}}
		}
		p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{source(""), source("vault")}}}}}
	})
	theirs := pod(func(p *corev1.Pod) { p.Name, p.UID, p.Spec.NodeName = "q", "2", "n2" })
	bare := pod(func(p *corev1.Pod) { p.Name, p.UID, p.Spec.NodeName = "r", "3", "n1" })
	o := usual()
	o.pods = []corev1.Pod{*mine, *theirs, *bare}
	agent := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	to := func(kind, name, uid string) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name, UID: types.UID(uid)}
	}
	for _, tc := range []struct {
		name      string
		user      user.Info
		bound     *authenticationv1.BoundObjectReference
		audiences []string
		want      string
	}{
		{"as its pod mounts it", agent, to("Pod", "p", "1"), nil, ""},
		{"for another audience of its pod", agent, to("Pod", "p", "1"), []string{"vault"}, ""},
		{"for an audience of no volume", agent, to("Pod", "p", "1"), []string{"bank"}, `audience "bank" not found in pod spec volume`},
		{"for two audiences", agent, to("Pod", "p", "1"), []string{"", "vault"}, "node may only request 0 or 1 audiences"},
		{"for a pod without tokens", agent, to("Pod", "r", "3"), nil, `audience "" not found in pod spec volume`},
		{"for ever", agent, nil, nil, "node requested token not bound to a pod"},
		{"bound to a node", agent, to("Node", "n1", "7"), nil, "node requested token not bound to a pod"},
		{"without uid", agent, to("Pod", "p", ""), nil, "node requested token with a pod binding without a uid"},
		{"of the pod before", agent, to("Pod", "p", "0"), nil, "does not match the UID in record"},
		{"of another node's pod", agent, to("Pod", "q", "2"), nil, "node requested token bound to a pod scheduled on a different node"},
		{"of no pod", agent, to("Pod", "s", "4"), nil, `pods "s" not found`},
		{"by an administrator", admin, nil, nil, ""},
	} {
		req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: tc.bound, Audiences: tc.audiences}}
		err := run(t, o, tc.user, admission.Create, "serviceaccounts", "token", "ns", "default", req, nil)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// An agent labels its Node with what kubelet may, so it draws no workloads that
// an administrator keeps for other nodes; a server also shows its role.
func TestNodeLabelsItself(t *testing.T) {
	agent := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	server := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes", auth.ServersGroup}}
	nodeObj := func(name string, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	const role = "node-role.kubernetes.io/control-plane"
	for _, tc := range []struct {
		name, key       string
		agent, byServer bool // may
	}{
		{"its own", "disk", true, true},
		{"somebody's", "example.com/disk", true, true},
		{"a name that only looks like it", "notkubernetes.io/x", true, true},
		{"hostname", corev1.LabelHostname, true, true},
		{"zone", corev1.LabelTopologyZone, true, true},
		{"region of before", corev1.LabelFailureDomainBetaRegion, true, true},
		{"instance type", corev1.LabelInstanceTypeStable, true, true},
		{"architecture of before", "beta.kubernetes.io/arch", true, true},
		{"of the kubelet", "kubelet.kubernetes.io/x", true, true},
		{"of the node", "feature.node.kubernetes.io/cpu", true, true},
		{"role", role, false, true},
		{"of Kubernetes", "kubernetes.io/anything", false, true},
		{"below Kubernetes", "x.y.kubernetes.io/anything", false, true},
		{"of k8s.io", "topology.k8s.io/x", false, true},
		{"restricted", "node-restriction.kubernetes.io/pci", false, false},
		{"below restricted", "x.node-restriction.kubernetes.io/pci", false, false},
	} {
		with := func(v string) *corev1.Node {
			n := nodeObj("n1", map[string]string{"kept.kubernetes.io/x": "y"})
			if v != "" {
				n.Labels[tc.key] = v
			}
			return n
		}
		bare := nodeObj("n1", map[string]string{tc.key: "v"})
		for who, may := range map[*user.DefaultInfo]bool{agent: tc.agent, server: tc.byServer, admin: true} {
			for what, err := range map[string]error{
				"register": run(t, usual(), who, admission.Create, "nodes", "", "", "n1", bare, nil),
				"add":      run(t, usual(), who, admission.Update, "nodes", "", "", "n1", with("v"), with("")),
				"change":   run(t, usual(), who, admission.Update, "nodes", "", "", "n1", with("w"), with("v")),
				"remove":   run(t, usual(), who, admission.Update, "nodes", "", "", "n1", with(""), with("v")),
				"status":   run(t, usual(), who, admission.Update, "nodes", "status", "", "n1", with("v"), with("")),
			} {
				if may != (err == nil) || err != nil && !strings.Contains(err.Error(), "is not allowed to modify labels: "+tc.key) {
					t.Errorf("%s: %s by %v: %v", tc.name, what, who.Groups, err)
				}
			}
			if err := run(t, usual(), who, admission.Update, "nodes", "", "", "n1", with("v"), with("v")); err != nil {
				t.Errorf("%s: keeping it, by %v: %v", tc.name, who.Groups, err)
			}
		}
	}
}
