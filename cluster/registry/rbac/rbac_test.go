package rbac

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

// users is who holds what; may is who has the verb, as "eve escalate roles".
type users struct {
	rules map[string][]rbacv1.PolicyRule
	may   []string
}

func (u users) PolicyRules(who user.Info, _ string) ([]rbacv1.PolicyRule, error) {
	return u.rules[who.GetName()], nil
}

func (u users) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if slices.Contains(u.may, strings.Join([]string{a.GetUser().GetName(), a.GetVerb(), a.GetResource()}, " ")) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

var (
	readPods    = rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}}
	readSecrets = rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}
)

func role(name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Rules: rules}
}

func bind(name, kind, role string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		RoleRef: rbacv1.RoleRef{Kind: kind, Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "eve"}}}
}

func newStorage(t *testing.T, u users) (*registrytest.Env, map[string]rest.Storage) {
	t.Helper()
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{Holdings: u, Authorizer: authorizer.AuthorizerFunc(u.authorize)})
	if err != nil {
		t.Fatal(err)
	}
	return env, m
}

func ctx(resource, who string, groups ...string) context.Context {
	ns := ""
	if !strings.HasPrefix(resource, "cluster") {
		ns = "default"
	}
	return registrytest.As(registrytest.Context(ns, rbacv1.SchemeGroupVersion.WithResource(resource)), who, groups...)
}

func TestEscalation(t *testing.T) {
	everything := []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}, {NonResourceURLs: []string{"*"}, Verbs: []string{"*"}}}
	env, m := newStorage(t, users{
		rules: map[string][]rbacv1.PolicyRule{"eve": {readPods}, "root": everything},
		may:   []string{"boss escalate roles", "boss escalate clusterroles", "binder bind clusterroles", "gc get roles"},
	})
	aggregated := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "agg"},
		AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}}}}
	secrets := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "secrets"}, Rules: []rbacv1.PolicyRule{readSecrets}}
	for _, c := range []struct {
		name, resource, who string
		groups              []string
		obj                 runtime.Object
		want                string
	}{
		{"what one holds", "roles", "eve", nil, role("pods", readPods), ""},
		{"more than one holds", "roles", "eve", []string{"g"}, role("more", readPods, readSecrets),
			`roles.rbac.authorization.k8s.io "more" is forbidden: user "eve" (groups=["g"]) is attempting to grant RBAC permissions not currently held:` + "\n" +
				`{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`},
		{"verbs of one target come together", "roles", "nobody", nil, role("more", readPods), `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`},
		{"escalate", "roles", "boss", nil, role("boss", readSecrets), ""},
		{"administrator by certificate", "clusterroles", "x", []string{user.SystemPrivilegedGroup}, secrets.DeepCopy(), ""},
		{"aggregation", "clusterroles", "eve", nil, aggregated.DeepCopy(), `clusterroles.rbac.authorization.k8s.io "agg" is forbidden: must have cluster-admin privileges to use the aggregationRule`},
		{"aggregation by one who holds all", "clusterroles", "root", nil, aggregated.DeepCopy(), ""},
		{"bind what one holds", "rolebindings", "eve", nil, bind("a", "Role", "pods"), ""},
		{"bind more than one holds", "rolebindings", "eve", nil, bind("b", "ClusterRole", "secrets"), `rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "eve"`},
		{"bind", "rolebindings", "binder", nil, bind("c", "ClusterRole", "secrets"), ""},
		{"bind needs the verb on that kind of role", "rolebindings", "binder", nil, bind("d", "Role", "boss"), `"d" is forbidden`},
		{"missing role", "rolebindings", "eve", nil, bind("e", "ClusterRole", "nope"), `clusterroles.rbac.authorization.k8s.io "nope" not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := env.Create(ctx(c.resource, c.who, c.groups...), m[c.resource], c.obj)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}

	t.Run("update", func(t *testing.T) {
		get := func() *rbacv1.Role {
			obj, err := m["roles"].(rest.Getter).Get(ctx("roles", "gc"), "boss", &metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return obj.(*rbacv1.Role).DeepCopy()
		}
		owned := get()
		owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}}
		if _, err := env.Update(ctx("roles", "gc"), m["roles"], owned); err != nil {
			t.Errorf("the garbage collector may change owners: %v", err)
		}
		labelled := get()
		labelled.Labels = map[string]string{"a": "b"}
		if _, err := env.Update(ctx("roles", "gc"), m["roles"], labelled); err == nil || !strings.Contains(err.Error(), "not currently held") {
			t.Errorf("error %v", err)
		}
	})
}

func TestRefused(t *testing.T) {
	env, m := newStorage(t, users{})
	group := func(kind string) *rbacv1.RoleBinding {
		b := bind("x", "Role", "r")
		b.Subjects[0].Kind = kind
		return b
	}
	clusterBinding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "x"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "r"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "a"}}}
	foreign := bind("x", "Role", "r")
	foreign.RoleRef.APIGroup = "example.com"
	for _, c := range []struct {
		resource string
		obj      runtime.Object
		want     string
	}{
		{"roles", role("x", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}}), "rules[0].verbs: Required value: verbs must contain at least one value"},
		{"roles", role("x", rbacv1.PolicyRule{Verbs: []string{"get"}, Resources: []string{"pods"}}), "rules[0].apiGroups: Required value: resource rules must supply at least one api group"},
		{"roles", role("x", rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}}), "rules[0].resources: Required value: resource rules must supply at least one resource"},
		{"roles", role("x", rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/x"}}), `rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs`},
		{"roles", role("a/b"), `metadata.name: Invalid value: "a/b": may not contain '/'`},
		{"rolebindings", bind("x", "Group", "r"), `roleRef.kind: Unsupported value: "Group": supported values: "Role", "ClusterRole"`},
		{"rolebindings", bind("x", "Role", ""), "roleRef.name: Required value"},
		{"rolebindings", group("Robot"), `subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"`},
		{"rolebindings", foreign, `roleRef.apiGroup: Unsupported value: "example.com"`},
		{"clusterrolebindings", clusterBinding, "subjects[0].namespace: Required value"},
		{"clusterroles", &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "x"}, AggregationRule: &rbacv1.AggregationRule{}},
			"aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"},
	} {
		_, err := env.Create(ctx(c.resource, "admin", user.SystemPrivilegedGroup), m[c.resource], c.obj)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.resource, err, c.want)
		}
	}
	if _, err := NewStorage(env.Options, Config{}); err == nil {
		t.Error("built without knowing who holds what")
	}
}

func TestBindings(t *testing.T) {
	env, m := newStorage(t, users{})
	c := ctx("rolebindings", "admin", user.SystemPrivilegedGroup)
	b := bind("x", "Role", "r")
	b.Subjects = append(b.Subjects, rbacv1.Subject{Kind: "Group", Name: "g"}, rbacv1.Subject{Kind: "ServiceAccount", Name: "s", Namespace: "ns"})
	obj, err := env.Create(c, m["rolebindings"], b)
	if err != nil {
		t.Fatal(err)
	}
	out := obj.(*rbacv1.RoleBinding)
	if out.RoleRef.APIGroup != rbacv1.GroupName || out.Subjects[1].APIGroup != rbacv1.GroupName || out.Subjects[2].APIGroup != "" {
		t.Errorf("defaults %+v", out)
	}
	columns, cells := registrytest.Cells(t, m["rolebindings"], out)
	if got := strings.Join(columns, "|"); got != "Name|Role|Age|Users|Groups|ServiceAccounts" {
		t.Errorf("columns %s", got)
	}
	if cells[1] != "Role/r" || cells[3] != "eve" || cells[4] != "g" || cells[5] != "ns/s" {
		t.Errorf("row %v", cells)
	}
	change := out.DeepCopy()
	change.RoleRef.Name = "other"
	if _, err := env.Update(c, m["rolebindings"], change); err == nil || !strings.Contains(err.Error(), "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"other\"}: cannot change roleRef") {
		t.Errorf("error %v", err)
	}
	r := role("r")
	r.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if _, cells := registrytest.Cells(t, m["roles"], r); cells[1] != "2026-01-02T03:04:05Z" {
		t.Errorf("row %v", cells)
	}
}
