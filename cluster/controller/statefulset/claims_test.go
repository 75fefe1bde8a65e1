package statefulset

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func policy(deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: deleted, WhenScaled: scaled}
	}
}

func TestOwnersOfClaims(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db-1", UID: "pod"}}
	ref := func(kind, name, uid string, controls bool) metav1.OwnerReference {
		version := map[string]string{"Pod": "v1", "StatefulSet": "apps/v1", "Operator": "x/v1"}[kind]
		return metav1.OwnerReference{APIVersion: version, Kind: kind, Name: name, UID: types.UID(uid), Controller: &controls}
	}
	bySet, byPod := ref("StatefulSet", "db", "set", true), ref("Pod", "db-1", "pod", true)
	for _, tc := range []struct {
		name      string
		policy    func(*appsv1.StatefulSet)
		have      []metav1.OwnerReference
		condemned bool
		want      string
		conflict  bool
	}{
		{"kept", policy(retain, retain), nil, false, "", false},
		{"no policy", func(*appsv1.StatefulSet) {}, nil, true, "", false},
		{"no longer to be deleted", policy(retain, retain), []metav1.OwnerReference{bySet}, false, "", false},
		{"with the set", policy(remove, retain), nil, false, "StatefulSet", false},
		{"with the set, beyond its size", policy(remove, retain), nil, true, "StatefulSet", false},
		{"when scaled, within", policy(retain, remove), []metav1.OwnerReference{byPod}, false, "", false},
		{"when scaled, beyond", policy(retain, remove), nil, true, "Pod", false},
		{"both, within", policy(remove, remove), []metav1.OwnerReference{byPod}, false, "StatefulSet", false},
		{"both, beyond", policy(remove, remove), []metav1.OwnerReference{bySet}, true, "Pod", false},
		{"a reference that does not control", policy(remove, retain), []metav1.OwnerReference{ref("StatefulSet", "db", "set", false)}, false, "StatefulSet", false},
		{"of a former pod", policy(remove, remove), []metav1.OwnerReference{ref("Pod", "db-1", "before", true)}, false, "Pod/before", false},
		{"of a former set", policy(remove, remove), []metav1.OwnerReference{ref("StatefulSet", "db", "before", true)}, true, "StatefulSet/before", false},
		{"of another controller", policy(remove, remove), []metav1.OwnerReference{ref("Operator", "o", "o", true), bySet}, false, "Operator", true},
		{"of another controller, kept", policy(retain, retain), []metav1.OwnerReference{ref("Operator", "o", "o", true)}, false, "Operator", false},
		{"of somebody else beside", policy(remove, retain), []metav1.OwnerReference{ref("Operator", "o", "o", false)}, false, "Operator StatefulSet", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: tc.have}}
			refs, conflict := owners(claim, set(1, tc.policy), pod, tc.condemned)
			var got []string
			for _, r := range refs {
				name := r.Kind
				if r.UID == "before" {
					name += "/before"
				} else if r.Kind != "Operator" && !ptr.Deref(r.Controller, false) {
					t.Errorf("%s does not control", r.Kind)
				}
				got = append(got, name)
			}
			if strings.Join(got, " ") != tc.want || conflict != tc.conflict {
				t.Errorf("owners %v, conflict %v; want %q, %v", got, conflict, tc.want, tc.conflict)
			}
		})
	}
}

func TestClaimsFollowThePolicy(t *testing.T) {
	ctx := context.Background()
	c := controllertest.New(t, set(2, policy(remove, remove), parallel, func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	}))
	c.RunPods(t, time.Millisecond, nil)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	claims := c.Client.CoreV1().PersistentVolumeClaims("default")
	owner := func(name, kind string) func() string {
		return func() string {
			claim, err := claims.Get(ctx, name, metav1.GetOptions{})
			if err != nil || len(claim.OwnerReferences) != 1 || claim.OwnerReferences[0].Kind != kind {
				return fmt.Sprintf("claim %s: %v, %v", name, claim.OwnerReferences, err)
			}
			return ""
		}
	}
	controllertest.Eventually(t, owner("data-db-0", "StatefulSet"))
	controllertest.Eventually(t, owner("data-db-1", "StatefulSet"))
	scale := func(n int) {
		t.Helper()
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, n)
		if _, err := c.Client.AppsV1().StatefulSets("default").Patch(ctx, "db", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	scale(1)
	controllertest.Eventually(t, owner("data-db-1", "Pod"))
	controllertest.Eventually(t, owner("data-db-0", "StatefulSet"))
	gone := func() string {
		if _, err := c.Client.CoreV1().Pods("default").Get(ctx, "db-1", metav1.GetOptions{}); err == nil {
			return "pod db-1 is still there"
		}
		return ""
	}
	controllertest.Eventually(t, gone)
	// Nobody collects garbage here: the claim is in the way of the next pod.
	scale(2)
	time.Sleep(100 * time.Millisecond)
	if why := gone(); why != "" {
		t.Fatal("a pod was made with the claim of a former one")
	}
	if err := claims.Delete(ctx, "data-db-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	controllertest.Eventually(t, owner("data-db-1", "StatefulSet"))
}
