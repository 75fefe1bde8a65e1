package cluster

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// On the real API: the name of a lost node, to which a pod of a StatefulSet is
// bound, is given to a new host only with the word that the former one is off.
func TestTheNameOfALostNodeOnTheRealAPI(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := newServer(t)
	for _, name := range []string{"works", "worker"} { // evictions freeze if all seem dead
		n, err := s.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if name == "works" {
			n.ResourceVersion = "" // controllers write it, too
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
			if _, err := s.client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-0", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "worker", Containers: []corev1.Container{{Name: "c", Image: "x"}}}}
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "db", Controller: ptr.To(true)}}
	within(t, 20*time.Second, "the pod is created", func() bool { // its service account comes soon
		_, err := s.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		return err == nil || apierrors.IsAlreadyExists(err)
	})
	var made membership.NewToken
	if code := skiffAPI(t, s.config, "POST", membership.TokensPath, `{"role":"server","ttl":60000000000}`, &made); code != http.StatusOK {
		t.Fatalf("token: %d", code)
	}
	token, err := membership.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.config.Host, "https://")
	r := membership.JoinRequest{Role: membership.RoleServer, Name: "worker", NodeID: "id-new", Version: "test", Address: "127.0.0.1", APIPort: 1, RaftPort: 2, GossipPort: 3}
	within(t, 20*time.Second, "the name of a node that may be cut off is refused", func() bool {
		_, err = membership.Join(ctx, addr, token, r)
		if err == nil {
			t.Fatal("the name of a node that may be cut off is given away")
		}
		return strings.Contains(err.Error(), "may still run default/db-0, which must not run twice: choose another name with --name, or try again in 5m")
	})
	other := r
	other.Name, other.NodeID = "worker-2", "id-other"
	if _, err := membership.Join(ctx, addr, token, other); err != nil {
		t.Errorf("another name: %v", err)
	}
	within(t, 20*time.Second, "the node is out of service", func() bool {
		have, err := s.client.CoreV1().Nodes().Get(ctx, "worker", metav1.GetOptions{})
		if err != nil {
			return false
		}
		have.Spec.Taints = append(have.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
		_, err = s.client.CoreV1().Nodes().Update(ctx, have, metav1.UpdateOptions{})
		return err == nil
	})
	if _, err := membership.Join(ctx, addr, token, r); err != nil {
		t.Errorf("the host that was said to be off: %v", err)
	}
}
