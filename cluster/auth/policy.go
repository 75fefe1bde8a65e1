package auth

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	readVerbs  = "get list watch"
	writeVerbs = "create delete deletecollection patch update"
)

// aggregateLabel marks a ClusterRole whose rules become part of another.
func aggregateLabel(role string) string { return "rbac.authorization.k8s.io/aggregate-to-" + role }

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: bootstrapMeta(name), Rules: rules}
}

func bootstrapMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}

func labelled(r *rbacv1.ClusterRole, roles ...string) *rbacv1.ClusterRole {
	for _, to := range roles {
		r.Labels[aggregateLabel(to)] = "true"
	}
	return r
}

func aggregated(name string) *rbacv1.ClusterRole {
	r := clusterRole(name)
	r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{aggregateLabel(name): "true"}}}}
	return r
}

func urls(verb string, paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: paths}
}

// ClusterRoles are the default roles, under the names users know. Only kinds
// that are served are listed.
func ClusterRoles() []*rbacv1.ClusterRole {
	workloads := []string{"daemonsets", "deployments", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets", "statefulsets/scale"}
	return []*rbacv1.ClusterRole{
		clusterRole("cluster-admin",
			rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
			urls("*", "*")),
		aggregated("admin"), labelled(aggregated("edit"), "admin"), labelled(aggregated("view"), "edit"),
		labelled(clusterRole("system:aggregate-to-admin",
			rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
			rule(readVerbs+" "+writeVerbs, "rbac.authorization.k8s.io", "roles", "rolebindings"),
		), "admin"),
		labelled(clusterRole("system:aggregate-to-edit",
			rule(readVerbs, "", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"),
			rule("impersonate", "", "serviceaccounts"),
			rule(writeVerbs, "", "pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"),
			rule("create", "", "pods/eviction"),
			rule(writeVerbs, "", "configmaps", "events", "persistentvolumeclaims", "replicationcontrollers", "replicationcontrollers/scale",
				"secrets", "serviceaccounts", "services", "services/proxy"),
			rule("create", "", "serviceaccounts/token"),
			rule(writeVerbs, "events.k8s.io", "events"),
			rule(writeVerbs, "apps", append([]string{"deployments/rollback"}, workloads...)...),
			rule(writeVerbs, "policy", "poddisruptionbudgets"),
			rule(readVerbs+" "+writeVerbs, "coordination.k8s.io", "leases"),
		), "edit"),
		labelled(clusterRole("system:aggregate-to-view",
			rule(readVerbs, "", "configmaps", "endpoints", "persistentvolumeclaims", "persistentvolumeclaims/status", "pods", "replicationcontrollers",
				"replicationcontrollers/scale", "serviceaccounts", "services", "services/status"),
			rule(readVerbs, "", "bindings", "events", "limitranges", "namespaces/status", "pods/log", "pods/status",
				"replicationcontrollers/status", "resourcequotas", "resourcequotas/status"),
			rule(readVerbs, "", "namespaces"),
			rule(readVerbs, "events.k8s.io", "events"),
			rule(readVerbs, "discovery.k8s.io", "endpointslices"),
			rule(readVerbs, "apps", append([]string{"controllerrevisions", "daemonsets/status", "deployments/status", "replicasets/status", "statefulsets/status"}, workloads...)...),
			rule(readVerbs, "policy", "poddisruptionbudgets", "poddisruptionbudgets/status"),
		), "view"),
		labelled(clusterRole("system:aggregated-metrics-reader",
			rule(readVerbs, "metrics.k8s.io", "pods", "nodes"),
		), "admin", "edit", "view"),
		clusterRole("system:basic-user",
			rule("create", "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule("create", "authentication.k8s.io", "selfsubjectreviews")),
		clusterRole("system:discovery",
			urls("get", "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/")),
		clusterRole("system:public-info-viewer", urls("get", "/healthz", "/livez", "/readyz", "/version", "/version/")),
		clusterRole("system:monitoring",
			urls("get", "/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"),
			rule("get", "", "nodes/metrics")), // of nodes themselves
		clusterRole("system:service-account-issuer-discovery", urls("get", ConfigurationPath, ConfigurationPath+"/", KeysPath, KeysPath+"/")),
		clusterRole("system:auth-delegator",
			rule("create", "authentication.k8s.io", "tokenreviews"),
			rule("create", "authorization.k8s.io", "subjectaccessreviews")),
		clusterRole("system:node-proxier",
			rule("list watch", "", "services", "endpoints"),
			rule("get list watch", "", "nodes"),
			rule("list watch", "discovery.k8s.io", "endpointslices"),
			rule("create patch update", "", "events"),
			rule("create patch update", "events.k8s.io", "events")),
		clusterRole("system:kubelet-api-admin",
			rule("get list watch proxy", "", "nodes"),
			rule("*", "", "nodes/configz", "nodes/healthz", "nodes/log", "nodes/metrics", "nodes/pods", "nodes/proxy", "nodes/stats")),
		clusterRole("system:kube-dns",
			rule("list watch", "", "endpoints", "services")),
		clusterRole("system:persistent-volume-provisioner",
			rule("get list watch create delete", "", "persistentvolumes"),
			rule("get list watch update", "", "persistentvolumeclaims"),
			rule("get list watch", "storage.k8s.io", "storageclasses"),
			rule("watch", "", "events"),
			rule("create update patch", "", "events")),
	}
}

// ClusterRoleBindings are the default bindings.
func ClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	group := func(names ...string) []rbacv1.Subject {
		var out []rbacv1.Subject
		for _, n := range names {
			out = append(out, rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: n})
		}
		return out
	}
	bind := func(role string, subjects []rbacv1.Subject) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{
			ObjectMeta: bootstrapMeta(role),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   subjects,
		}
	}
	return []*rbacv1.ClusterRoleBinding{
		bind("cluster-admin", group(user.SystemPrivilegedGroup)),
		bind("system:monitoring", group("system:monitoring")),
		bind("system:discovery", group(user.AllAuthenticated)),
		bind("system:basic-user", group(user.AllAuthenticated)),
		bind("system:public-info-viewer", group(user.AllAuthenticated, user.AllUnauthenticated)),
		bind("system:service-account-issuer-discovery", group("system:serviceaccounts")),
	}
}

// Roles are the default roles inside system namespaces.
func Roles() []*rbacv1.Role {
	reader := &rbacv1.Role{ObjectMeta: bootstrapMeta("extension-apiserver-authentication-reader"), Rules: []rbacv1.PolicyRule{
		{Verbs: strings.Fields(readVerbs), APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"extension-apiserver-authentication"}}}}
	reader.Namespace = metav1.NamespaceSystem
	return []*rbacv1.Role{reader}
}
