package static

import (
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/pod"
)

const good = `
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - {name: c, image: app}
`

func defaults(p *v1.Pod) error {
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = v1.RestartPolicyAlways
	}
	if len(p.Spec.Containers) == 0 {
		return errors.New("spec.containers: Required value")
	}
	return nil
}

func TestParse(t *testing.T) {
	p, err := Parse([]byte(good), "Node-1", defaults)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "web-node-1" || p.Namespace != "default" || p.Spec.NodeName != "Node-1" || len(p.UID) != 32 || p.Spec.RestartPolicy != v1.RestartPolicyAlways || p.Status.Phase != v1.PodPending {
		t.Errorf("%+v", p)
	}
	if p.Annotations[pod.HashAnnotation] != string(p.UID) || p.Annotations[pod.SourceAnnotation] != "file" || !pod.Critical(p) {
		t.Errorf("annotations %v", p.Annotations)
	}
	if tol := p.Spec.Tolerations; len(tol) != 1 || tol[0].Operator != v1.TolerationOpExists || tol[0].Effect != v1.TaintEffectNoExecute || tol[0].Key != "" {
		t.Errorf("tolerations %v", tol)
	}
}

func TestUIDIsOfContentsAndNode(t *testing.T) {
	uid := func(text, node string) string {
		t.Helper()
		p, err := Parse([]byte(text), node, defaults)
		if err != nil {
			t.Fatal(err)
		}
		return string(p.UID)
	}
	base := uid(good, "n1")
	same := map[string]string{
		"comments": "# a comment\n---\n" + strings.ReplaceAll(good, "name: web", "name: web # the name"),
		"JSON":     `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web"},"spec":{"containers":[{"image":"app","name":"c"}]}}`,
		"what a copy from the API has": strings.ReplaceAll(good, "  name: web", "  name: web\n  uid: \"4711\"\n  resourceVersion: \"12\"\n  generation: 3\n  creationTimestamp: null\n"+
			"  ownerReferences: [{apiVersion: v1, kind: Node, name: n1, uid: x}]\n  annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}") + "status: {phase: Running}\n",
	}
	for name, text := range same {
		if got := uid(text, "n1"); got != base {
			t.Errorf("%s: another UID", name)
		}
	}
	other := map[string]string{
		"image": uid(strings.ReplaceAll(good, "app", "app:2"), "n1"), "label": uid(strings.ReplaceAll(good, "  name: web", "  name: web\n  labels: {a: b}"), "n1"),
		"namespace": uid(strings.ReplaceAll(good, "  name: web", "  name: web\n  namespace: kube-system"), "n1"), "node": uid(good, "n2"),
	}
	for name, got := range other {
		if got == base {
			t.Errorf("%s: the same UID", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(spec string) string { return good + spec }
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "there is nothing in it"},
		{"comments only", "# later\n---\n", "there is nothing in it"},
		{"no YAML", "apiVersion: v1\nkind: [", "yaml"},
		{"half a word", "apiVersion: v1\nkind: Po", "Po"},
		{"not an object", "- a\n- b\n", "json"},
		{"another kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", "apiVersion apps/v1, kind Deployment: want v1 and Pod"},
		{"a list", "apiVersion: v1\nkind: PodList\nitems: []\n", "kind PodList: want v1 and Pod"},
		{"two", good + "---" + good, "more than one document"},
		{"typing error", strings.ReplaceAll(good, "image: app", "imagge: app"), `unknown field "spec.containers[0].imagge"`},
		{"twice the same key", with("  hostNetwork: true\n  hostNetwork: false\n"), "hostNetwork"},
		{"no name", strings.ReplaceAll(good, "  name: web", "  labels: {a: b}"), "metadata.name: Required value"},
		{"no container", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "spec.containers: Required value"},
		{"service account", with("  serviceAccountName: default\n"), "spec.serviceAccountName: Forbidden: static pods may not reference serviceaccounts"},
		{"old name of it", with("  serviceAccount: default\n"), "spec.serviceAccount: Forbidden"},
		{"pull secret", with("  imagePullSecrets: [{name: a}]\n"), "spec.imagePullSecrets: Forbidden: static pods may not reference secrets"},
		{"secret", with("  volumes: [{name: v, secret: {secretName: a}}]\n"), "spec.volumes[0].secret: Forbidden"},
		{"config map", with("  volumes: [{name: v, configMap: {name: a}}]\n"), "spec.volumes[0].configMap: Forbidden: static pods may not reference configmaps"},
		{"claim", with("  volumes: [{name: v, persistentVolumeClaim: {claimName: a}}]\n"), "spec.volumes[0].persistentVolumeClaim: Forbidden"},
		{"claim made for it", with("  volumes: [{name: v, ephemeral: {}}]\n"), "spec.volumes[0].ephemeral: Forbidden"},
		{"token", with("  volumes: [{name: v, projected: {sources: [{downwardAPI: {}}, {serviceAccountToken: {path: a}}]}}]\n"), "spec.volumes[0].projected.sources[1].serviceAccountToken: Forbidden"},
		{"variables", with("  initContainers: [{name: i, image: a, envFrom: [{configMapRef: {name: a}}], env: [{name: A, valueFrom: {secretKeyRef: {name: a, key: b}}}]}]\n"),
			"spec.initContainers[0].env[0].valueFrom.secretKeyRef: Forbidden"},
		{"ephemeral container", with("  ephemeralContainers: [{name: d, image: a}]\n"), "static pods do not support ephemeral containers"},
		{"several", with("  serviceAccountName: a\n  volumes: [{name: v, secret: {secretName: a}}]\n"), "spec.volumes[0].secret"},
	} {
		if p, err := Parse([]byte(c.text), "n1", defaults); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", c.name, p, err, c.want)
		}
	}
	if p, err := Parse([]byte(with("  tolerations: [{operator: Exists}]\n  volumes: [{name: v, downwardAPI: {}}, {name: e, emptyDir: {}}, {name: h, hostPath: {path: /}}]\n")), "n1", defaults); err != nil || len(p.Spec.Tolerations) != 2 {
		t.Errorf("%v, %v", p, err)
	}
}
