package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// TestGoldenServer starts a server on the data directory that one of each release
// has left, and finds everything in it.
func TestGoldenServer(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "golden", Namespace: "default"}
	if golden.Update(t) {
		dir := filepath.Join(t.TempDir(), "data")
		s := startServer(t, testConfig(dir))
		labels := map[string]string{"app": "golden"}
		template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a:1"}}}}
		_, err := s.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
		if err == nil {
			_, err = s.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"a": "secret"}}, metav1.CreateOptions{})
		}
		if err == nil {
			_, err = s.client.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{ObjectMeta: meta,
				Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template}}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "quiet", quiet(s))
		s.stop()
		for _, name := range []string{"raft/reserve", "lock"} { // made again
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		if err := os.CopyFS(golden.Fresh(t, "server"), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	golden.Each(t, "server", func(t *testing.T, dir string) {
		data := golden.Copy(t, dir)
		id, err := os.ReadFile(filepath.Join(data, "node-id"))
		if err != nil {
			t.Fatal(err)
		}
		s := startServer(t, testConfig(data))
		if s.ID()+"\n" != string(id) {
			t.Errorf("it is %s, was %s", s.ID(), id)
		}
		c, err := s.client.CoreV1().ConfigMaps("default").Get(t.Context(), "golden", metav1.GetOptions{})
		if err != nil || c.Data["a"] != "b" {
			t.Errorf("config map: %v, %v", c, err)
		}
		secret, err := s.client.CoreV1().Secrets("default").Get(t.Context(), "golden", metav1.GetOptions{})
		if err != nil || string(secret.Data["a"]) != "secret" {
			t.Errorf("secret: %v", err)
		}
		d, err := s.client.AppsV1().Deployments("default").Get(t.Context(), "golden", metav1.GetOptions{})
		if err != nil || d.Spec.Template.Spec.Containers[0].Image != "a:1" {
			t.Errorf("deployment: %v", err)
		}
		pods, err := s.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=golden"})
		if err != nil || !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return metav1.GetControllerOf(&p) != nil }) {
			t.Errorf("pods of the deployment: %d, %v", len(pods.Items), err)
		}
		eventually(t, "writes go on", func() (bool, error) {
			c.Data["c"] = "d"
			_, err := s.client.CoreV1().ConfigMaps("default").Update(t.Context(), c, metav1.UpdateOptions{})
			return err == nil, err
		})
	})
}
