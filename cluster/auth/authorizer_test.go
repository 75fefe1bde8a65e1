package auth

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

func startedRBAC(t *testing.T, client *fake.Clientset) *RBAC {
	t.Helper()
	f := informers.NewSharedInformerFactory(client, 0)
	r, err := NewRBAC(f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); f.Shutdown() })
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	return r
}

func resource(u user.Info, verb, ns, group, res, sub, name string) authorizer.AttributesRecord {
	return authorizer.AttributesRecord{User: u, Verb: verb, Namespace: ns, APIGroup: group, APIVersion: "v1", Resource: res, Subresource: sub, Name: name, ResourceRequest: true}
}

func TestRBACDecisions(t *testing.T) {
	role := func(ns, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: rules}
	}
	bind := func(ns, name, kind string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, RoleRef: rbacv1.RoleRef{Kind: kind, Name: name}, Subjects: subjects}
	}
	named := rule("get", "", "configmaps")
	named.ResourceNames = []string{"one"}
	client := fake.NewClientset(
		role("ns", "reader", rule("get list", "", "pods", "pods/log"), named),
		bind("ns", "reader", "Role", rbacv1.Subject{Kind: "User", Name: "ann"}, rbacv1.Subject{Kind: "ServiceAccount", Name: "app"}),
		bind("ns", "gone", "Role", rbacv1.Subject{Kind: "User", Name: "ann"}),
		clusterRole("scaler", rule("update", "apps", "*/scale"), urls("get", "/metrics", "/debug/*")),
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "scaler"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "scaler"},
			Subjects: []rbacv1.Subject{{Kind: "Group", Name: "ops"}}},
	)
	r := startedRBAC(t, client)
	ann := &user.DefaultInfo{Name: "ann"}
	app := &user.DefaultInfo{Name: "system:serviceaccount:ns:app"}
	ops := &user.DefaultInfo{Name: "bob", Groups: []string{"ops"}}
	for _, tc := range []struct {
		name string
		a    authorizer.AttributesRecord
		want bool
	}{
		{"verb and resource", resource(ann, "get", "ns", "", "pods", "", "x"), true},
		{"subresource named", resource(ann, "get", "ns", "", "pods", "log", "x"), true},
		{"subresource not named", resource(ann, "get", "ns", "", "pods", "exec", "x"), false},
		{"other namespace", resource(ann, "get", "other", "", "pods", "", "x"), false},
		{"other verb", resource(ann, "delete", "ns", "", "pods", "", "x"), false},
		{"resource name", resource(ann, "get", "ns", "", "configmaps", "", "one"), true},
		{"other resource name", resource(ann, "get", "ns", "", "configmaps", "", "two"), false},
		{"service account", resource(app, "list", "ns", "", "pods", "", ""), true},
		{"group, any resource's scale", resource(ops, "update", "zzz", "apps", "deployments", "scale", "x"), true},
		{"group, resource itself", resource(ops, "update", "zzz", "apps", "deployments", "", "x"), false},
		{"url", authorizer.AttributesRecord{User: ops, Verb: "get", Path: "/metrics"}, true},
		{"url prefix", authorizer.AttributesRecord{User: ops, Verb: "get", Path: "/debug/pprof"}, true},
		{"other url", authorizer.AttributesRecord{User: ops, Verb: "get", Path: "/metricsx"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, reason, err := r.Authorize(context.Background(), tc.a)
			if err != nil || (d == authorizer.DecisionAllow) != tc.want {
				t.Errorf("decision %v (%s), %v; want %v", d, reason, err, tc.want)
			}
		})
	}
}

func TestNodeSeesOnlyWhatItsPodsName(t *testing.T) {
	_, objects := testTokens(t)
	p := objects.pods["ns/web"]
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s1"}}}}
	p.Spec.Containers = []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c1"}}}}}}
	p.Spec.Volumes = append(p.Spec.Volumes,
		corev1.Volume{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
		corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
	claimed := func(claim string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: claim}}}
	}
	objects.volumes = map[string]*corev1.PersistentVolume{"pv1": claimed("data"), "pv2": claimed("web-scratch"), "pv3": claimed("other"), "pv4": {}}
	n := NewNode(objects)
	agent := func(name string) user.Info {
		return &user.DefaultInfo{Name: NodeUserPrefix + name, Groups: []string{NodesGroup}}
	}
	mine := resource(agent("n1"), "list", "", "", "pods", "", "")
	mine.FieldSelectorRequirements = fields.Requirements{{Field: "spec.nodeName", Operator: selection.Equals, Value: "n1"}}
	others := mine
	others.User = agent("n2")
	for _, tc := range []struct {
		name string
		a    authorizer.AttributesRecord
		want bool
	}{
		{"secret of its pod", resource(agent("n1"), "get", "ns", "", "secrets", "", "s1"), true},
		{"watch by name", resource(agent("n1"), "watch", "ns", "", "secrets", "", "s1"), true},
		{"secret from another node", resource(agent("n2"), "get", "ns", "", "secrets", "", "s1"), false},
		{"secret nobody names", resource(agent("n1"), "get", "ns", "", "secrets", "", "s2"), false},
		{"all secrets", resource(agent("n1"), "list", "ns", "", "secrets", "", ""), false},
		{"write a secret", resource(agent("n1"), "update", "ns", "", "secrets", "", "s1"), false},
		{"config map", resource(agent("n1"), "get", "ns", "", "configmaps", "", "c1"), true},
		{"claim of its pod", resource(agent("n1"), "get", "ns", "", "persistentvolumeclaims", "", "data"), true},
		{"claim of an ephemeral volume", resource(agent("n1"), "get", "ns", "", "persistentvolumeclaims", "", "web-scratch"), true},
		{"claim from another node", resource(agent("n2"), "get", "ns", "", "persistentvolumeclaims", "", "data"), false},
		{"volume of its pod's claim", resource(agent("n1"), "get", "", "", "persistentvolumes", "", "pv1"), true},
		{"ephemeral volume of its pod", resource(agent("n1"), "get", "", "", "persistentvolumes", "", "pv2"), true},
		{"volume from another node", resource(agent("n2"), "get", "", "", "persistentvolumes", "", "pv1"), false},
		{"volume of another claim", resource(agent("n1"), "get", "", "", "persistentvolumes", "", "pv3"), false},
		{"volume of no claim", resource(agent("n1"), "get", "", "", "persistentvolumes", "", "pv4"), false},
		{"all volumes", resource(agent("n1"), "list", "", "", "persistentvolumes", "", ""), false},
		{"write a volume", resource(agent("n1"), "update", "", "", "persistentvolumes", "", "pv1"), false},
		{"token of its pod's account", resource(agent("n1"), "create", "ns", "", "serviceaccounts", "token", "app"), true},
		{"token from another node", resource(agent("n2"), "create", "ns", "", "serviceaccounts", "token", "app"), false},
		{"its pods", mine, true},
		{"pods of others", others, false},
		{"all pods", resource(agent("n1"), "list", "", "", "pods", "", ""), false},
		{"pod status", resource(agent("n1"), "patch", "ns", "", "pods", "status", "web"), true},
		{"not in the group", resource(&user.DefaultInfo{Name: NodeUserPrefix + "n1"}, "get", "ns", "", "secrets", "", "s1"), false},
		{"deployments", resource(agent("n1"), "list", "ns", "apps", "deployments", "", ""), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, reason, err := n.Authorize(context.Background(), tc.a)
			if err != nil || (d == authorizer.DecisionAllow) != tc.want {
				t.Errorf("decision %v (%s), %v; want %v", d, reason, err, tc.want)
			}
		})
	}
}

func TestReconcileAndAggregate(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	client := fake.NewClientset()
	if err := Reconcile(ctx, client); err != nil {
		t.Fatal(err)
	}
	writes := len(client.Actions())
	if err := Reconcile(ctx, client); err != nil {
		t.Fatal(err)
	}
	for _, a := range client.Actions()[writes:] {
		if a.GetVerb() != "get" && a.GetVerb() != "list" {
			t.Errorf("second pass wrote: %s %s", a.GetVerb(), a.GetResource().Resource)
		}
	}
	f := informers.NewSharedInformerFactory(client, 0)
	agg, err := NewAggregation(client, f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- agg.Run(ctx) }()
	defer func() { cancel(); <-done; f.Shutdown() }()
	secrets := resource(&user.DefaultInfo{Name: "x"}, "get", "ns", "", "secrets", "", "")
	deadline := time.Now().Add(20 * time.Second)
	for {
		admin, err := client.RbacV1().ClusterRoles().Get(ctx, "admin", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		covered := false
		for _, r := range admin.Rules {
			covered = covered || allows(r, secrets)
		}
		if covered { // through edit: two steps of aggregation
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("admin never got the rules of edit: %v", admin.Rules)
		}
		time.Sleep(5 * time.Millisecond)
	}
	view, err := client.RbacV1().ClusterRoles().Get(ctx, "view", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range view.Rules {
		if allows(r, secrets) {
			t.Error("view may read secrets")
		}
	}
}

// The default roles let in whom users of Kubernetes expect.
func TestDefaultRoles(t *testing.T) {
	u := &user.DefaultInfo{Name: "x"}
	for _, tc := range []struct {
		role string
		a    authorizer.Attributes
		want bool
	}{
		{"system:monitoring", resource(u, "get", "", "", "nodes", "metrics", "n1"), true},
		{"system:monitoring", resource(u, "create", "", "", "nodes", "proxy", "n1"), false},
		{"system:aggregate-to-view", resource(u, "list", "ns", "events.k8s.io", "events", "", ""), true},
		{"system:aggregate-to-view", resource(u, "create", "ns", "events.k8s.io", "events", "", ""), false},
		{"system:aggregate-to-edit", resource(u, "create", "ns", "events.k8s.io", "events", "", ""), true},
	} {
		i := slices.IndexFunc(ClusterRoles(), func(r *rbacv1.ClusterRole) bool { return r.Name == tc.role })
		if i < 0 {
			t.Fatalf("no role %s", tc.role)
		}
		if got := slices.ContainsFunc(ClusterRoles()[i].Rules, func(r rbacv1.PolicyRule) bool { return allows(r, tc.a) }); got != tc.want {
			t.Errorf("%s: %s %s/%s: %v", tc.role, tc.a.GetVerb(), tc.a.GetResource(), tc.a.GetSubresource(), got)
		}
	}
}

// lagging hears of a pod only when it is brought up to date.
type lagging struct {
	*fakeObjects
	late map[string]*corev1.Pod
}

func (l *lagging) Refresh(context.Context) bool { l.pods = l.late; return true }

func TestNodeIsNotRefusedByAServerThatIsBehind(t *testing.T) {
	_, objects := testTokens(t)
	l := &lagging{objects, objects.pods}
	objects.pods = nil
	n1 := &user.DefaultInfo{Name: NodeUserPrefix + "n1", Groups: []string{NodesGroup}}
	if d, reason, err := NewNode(l).Authorize(t.Context(), resource(n1, "get", "ns", "", "serviceaccounts", "", "app")); err != nil || d != authorizer.DecisionAllow {
		t.Errorf("decision %v (%s), %v", d, reason, err)
	}
	if d, _, err := NewNode(l).Authorize(t.Context(), resource(n1, "get", "ns", "", "serviceaccounts", "", "other")); err != nil || d == authorizer.DecisionAllow {
		t.Errorf("an account of nobody's pod: decision %v, %v", d, err)
	}
}
