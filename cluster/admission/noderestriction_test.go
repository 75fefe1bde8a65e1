package admission

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
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
