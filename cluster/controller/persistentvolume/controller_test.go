package persistentvolume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/storageapi"
)

func class(name, provisioner string, mode storagev1.VolumeBindingMode) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
}

func byDefault(c *storagev1.StorageClass) *storagev1.StorageClass {
	c.Annotations = map[string]string{storageapi.DefaultAnnotation: "true"}
	return c
}

func claim(name, class, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func wants(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func bound(c *corev1.PersistentVolumeClaim) {
	c.Annotations[storagehelpers.AnnBindCompleted] = "yes"
	c.Status.Phase = corev1.ClaimBound
}

func volume(name, class, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Annotations: map[string]string{}}, Spec: corev1.PersistentVolumeSpec{
		StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{"storage": resource.MustParse(size)},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
	}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
	for _, f := range change {
		f(v)
	}
	return v
}

func forClaim(name, uid string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: name, UID: types.UID(uid)}
	}
}

func phase(p corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Status.Phase = p }
}

func reclaim(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
}

func madeBy(name string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Annotations[storagehelpers.AnnDynamicallyProvisioned] = name
	}
}

func boundByController(v *corev1.PersistentVolume) {
	v.Annotations[storagehelpers.AnnBoundByController] = "yes"
}

// show writes the state of all claims and volumes: "c=Bound:v v=Bound:c".
func show(c *controllertest.Cluster) string {
	ctx := context.Background()
	var out []string
	claims, err := c.Client.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, cl := range claims.Items {
		s := fmt.Sprintf("%s=%s", cl.Name, cl.Status.Phase)
		if cl.Spec.VolumeName != "" {
			s += ":" + cl.Spec.VolumeName
		}
		out = append(out, s)
	}
	volumes, err := c.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, v := range volumes.Items {
		s := fmt.Sprintf("%s=%s", v.Name, v.Status.Phase)
		if r := v.Spec.ClaimRef; r != nil {
			s += ":" + r.Name
			if r.UID == "" {
				s += "?"
			}
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func run(t *testing.T, objs ...runtime.Object) *controllertest.Cluster {
	t.Helper()
	c := controllertest.New(t, objs...)
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	return c
}

func TestBinding(t *testing.T) {
	rwx := func(v *corev1.PersistentVolume) {
		v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.ReadWriteMany)
	}
	block := corev1.PersistentVolumeBlock
	gone := metav1.Now()
	waits, now := class("waits", "example.com/disk", storagev1.VolumeBindingWaitForFirstConsumer), class("now", "example.com/disk", storagev1.VolumeBindingImmediate)
	for _, tc := range []struct {
		name  string
		objs  []runtime.Object
		want  string
		event string // in one of the events
	}{
		{"a new volume is available", []runtime.Object{volume("v", "", "1Gi", phase(corev1.VolumePending))}, "v=Available", ""},
		{"the smallest that is large enough", []runtime.Object{claim("c", "", "2Gi"), volume("large", "", "5Gi"), volume("right", "", "3Gi"), volume("small", "", "1Gi")},
			"c=Bound:right large=Available right=Bound:c small=Available", ""},
		{"the fewest modes before the smallest", []runtime.Object{claim("c", "", "1Gi"), volume("many", "", "1Gi", rwx), volume("one", "", "2Gi")},
			"c=Bound:one many=Available one=Bound:c", ""},
		{"all modes have to be there", []runtime.Object{claim("c", "", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), volume("v", "", "1Gi")}, "c=Pending v=Available", "no persistent volumes available for this claim and no storage class is set"},
		{"of the class only", []runtime.Object{claim("c", "gold", "1Gi"), volume("v", "", "1Gi"), volume("w", "gold", "1Gi")}, "c=Bound:w v=Available w=Bound:c", ""},
		{"by selector", []runtime.Object{claim("c", "", "1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}), volume("v", "", "1Gi"), volume("w", "", "1Gi", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"a": "b"} })}, "c=Bound:w v=Available w=Bound:c", ""},
		{"the one that names the claim", []runtime.Object{claim("c", "", "1Gi"), volume("right", "", "1Gi"), volume("v", "", "9Gi", forClaim("c", ""))}, "c=Bound:v right=Available v=Bound:c", ""},
		{"the one that the claim names", []runtime.Object{claim("c", "", "1Gi", wants("v")), volume("right", "", "1Gi"), volume("v", "", "9Gi")}, "c=Bound:v right=Available v=Bound:c", ""},
		{"one that names another claim", []runtime.Object{claim("c", "", "1Gi", wants("v")), volume("v", "", "9Gi", forClaim("d", ""))}, "c=Pending:v v=Available:d?", `volume "v" already bound to a different claim.`},
		{"too small a one", []runtime.Object{claim("c", "", "2Gi", wants("v")), volume("v", "", "1Gi")}, "c=Pending:v v=Available", `Cannot bind to requested volume "v": requested PV is too small`},
		{"another class", []runtime.Object{claim("c", "x", "1Gi", wants("v")), volume("v", "", "1Gi")}, "c=Pending:v v=Available", `Cannot bind to requested volume "v": storageClassName does not match`},
		{"another volume mode", []runtime.Object{claim("c", "", "1Gi"), volume("v", "", "1Gi", func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = &block })}, "c=Pending v=Available", "no persistent volumes available"},
		{"a volume that is going", []runtime.Object{claim("c", "", "1Gi", wants("v")), volume("v", "", "1Gi", func(v *corev1.PersistentVolume) {
			v.DeletionTimestamp, v.Finalizers = &gone, []string{"a/b"}
		})}, "c=Pending:v v=Available", "the volume is marked for deletion"},
		{"a binding that was cut off", []runtime.Object{claim("c", "", "1Gi"), volume("v", "", "2Gi", forClaim("c", "c"), boundByController, phase(corev1.VolumeBound)), volume("w", "", "1Gi")}, "c=Bound:v v=Bound:c w=Available", ""},
		{"waits for a pod", []runtime.Object{waits, claim("c", "waits", "1Gi"), volume("v", "waits", "1Gi")}, "c=Pending v=Available", "Normal WaitForFirstConsumer waiting for first consumer to be created before binding"},
		{"waits for a pod, but is meant", []runtime.Object{waits, claim("c", "waits", "1Gi"), volume("v", "waits", "1Gi", forClaim("c", ""))}, "c=Bound:v v=Bound:c", ""},
		{"is provisioned elsewhere", []runtime.Object{now, claim("c", "now", "1Gi")}, "c=Pending", "by the external provisioner 'example.com/disk'"},
		{"class is missing", []runtime.Object{claim("c", "now", "1Gi")}, "c=Pending", `storageclass.storage.k8s.io "now" not found`},
		{"class makes none", []runtime.Object{class("now", storagehelpers.NotSupportedProvisioner, storagev1.VolumeBindingImmediate), claim("c", "now", "1Gi")}, "c=Pending", `storageclass "now" does not support dynamic provisioning`},
		{"its volume is gone", []runtime.Object{claim("c", "", "1Gi", wants("v"), bound)}, "c=Lost:v", "Warning ClaimLost Bound claim has lost its PersistentVolume. Data on the volume is lost!"},
		{"its volume is another's", []runtime.Object{claim("c", "", "1Gi", wants("v"), bound), claim("d", "", "1Gi", wants("v"), bound), volume("v", "", "1Gi", forClaim("d", "d"))},
			"c=Lost:v d=Bound:v v=Bound:d", "Warning ClaimMisbound"},
		{"its volume does not know", []runtime.Object{claim("c", "", "1Gi", wants("v"), bound), volume("v", "", "1Gi")}, "c=Bound:v v=Bound:c", ""},
		{"claim is gone, volume is kept", []runtime.Object{volume("v", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound))}, "v=Released:c", ""},
		{"claim is another of the name", []runtime.Object{claim("c", "x", "1Gi"), volume("v", "", "1Gi", forClaim("c", "before"), phase(corev1.VolumeBound))}, "c=Pending v=Released:c", ""},
		{"claim is gone, nobody deletes", []runtime.Object{volume("v", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound), reclaim(corev1.PersistentVolumeReclaimDelete))},
			"v=Failed:c", `Warning VolumeFailedDelete error getting deleter volume plugin for volume "v": no deletable volume plugin matched`},
		{"claim is gone, nobody recycles", []runtime.Object{volume("v", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound), reclaim(corev1.PersistentVolumeReclaimRecycle))},
			"v=Failed:c", "Warning VolumeFailedRecycle"},
		{"claim is gone, its maker deletes", []runtime.Object{volume("v", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound), reclaim(corev1.PersistentVolumeReclaimDelete), madeBy("example.com/disk"))}, "v=Released:c", ""},
		{"claim has another volume", []runtime.Object{claim("c", "", "1Gi", wants("w"), bound), volume("w", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound)),
			volume("v", "", "1Gi", forClaim("c", "c"), boundByController, phase(corev1.VolumeBound))}, "c=Bound:w v=Available w=Bound:c", ""},
		{"claim has another volume than the user said", []runtime.Object{claim("c", "", "1Gi", wants("w"), bound), volume("w", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound)),
			volume("v", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound))}, "c=Bound:w v=Available:c? w=Bound:c", ""},
		{"claim has another volume than was made", []runtime.Object{claim("c", "", "1Gi", wants("w"), bound), volume("w", "", "1Gi", forClaim("c", "c"), phase(corev1.VolumeBound)),
			volume("v", "", "1Gi", forClaim("c", "c"), madeBy("example.com/disk"), reclaim(corev1.PersistentVolumeReclaimDelete))}, "c=Bound:w v=Released:c w=Bound:c", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := run(t, tc.objs...)
			var events []string
			controllertest.Eventually(t, func() string {
				for len(c.Events.Events) > 0 {
					events = append(events, <-c.Events.Events)
				}
				if got := show(c); got != tc.want {
					return fmt.Sprintf("%s; want %s", got, tc.want)
				}
				if !strings.Contains(strings.Join(events, "\n"), tc.event) {
					return fmt.Sprintf("no event with %q in %q", tc.event, events)
				}
				return ""
			})
			c.Settles(t, 100*time.Millisecond) // what else may follow
			if got := show(c); got != tc.want {
				t.Errorf("did not stay: %s; want %s", got, tc.want)
			}
			if tc.event == "" {
				return
			}
			for len(c.Events.Events) > 0 {
				events = append(events, <-c.Events.Events)
			}
			if n := strings.Count(strings.Join(events, "\n"), tc.event); n != 1 {
				t.Errorf("%d events with %q in %q", n, tc.event, events)
			}
		})
	}
}

func TestClaimHasWhatItGot(t *testing.T) {
	c := run(t, claim("c", "", "1Gi"), volume("v", "", "2Gi"))
	controllertest.Eventually(t, func() string {
		cl, err := c.Client.CoreV1().PersistentVolumeClaims("default").Get(context.Background(), "c", metav1.GetOptions{})
		if q := cl.Status.Capacity["storage"]; err != nil || q.String() != "2Gi" || len(cl.Status.AccessModes) != 1 ||
			cl.Annotations[storagehelpers.AnnBindCompleted] != "yes" || cl.Annotations[storagehelpers.AnnBoundByController] != "yes" {
			return fmt.Sprintf("%v, %v, %v", err, cl.Status, cl.Annotations)
		}
		return ""
	})
}

// What a claim waits for may come later.
func TestWaitingClaimsAreWoken(t *testing.T) {
	ctx := context.Background()
	none := claim("c", "", "1Gi")
	none.Spec.StorageClassName = nil
	for _, tc := range []struct {
		name   string
		claim  *corev1.PersistentVolumeClaim
		change func(c *controllertest.Cluster) error
		want   func(*corev1.PersistentVolumeClaim) bool
	}{
		{"a volume", claim("c", "", "1Gi"), func(c *controllertest.Cluster) error {
			_, err := c.Client.CoreV1().PersistentVolumes().Create(ctx, volume("v", "", "1Gi", phase(corev1.VolumePending)), metav1.CreateOptions{})
			return err
		}, func(cl *corev1.PersistentVolumeClaim) bool { return cl.Spec.VolumeName == "v" }},
		{"the volume it names", claim("c", "", "1Gi", wants("v")), func(c *controllertest.Cluster) error {
			_, err := c.Client.CoreV1().PersistentVolumes().Create(ctx, volume("v", "", "1Gi"), metav1.CreateOptions{})
			return err
		}, func(cl *corev1.PersistentVolumeClaim) bool { return cl.Status.Phase == corev1.ClaimBound }},
		{"a default class", none, func(c *controllertest.Cluster) error {
			_, err := c.Client.StorageV1().StorageClasses().Create(ctx, byDefault(class("d", "example.com/disk", storagev1.VolumeBindingWaitForFirstConsumer)), metav1.CreateOptions{})
			return err
		}, func(cl *corev1.PersistentVolumeClaim) bool {
			return cl.Spec.StorageClassName != nil && *cl.Spec.StorageClassName == "d"
		}},
		{"its class", claim("c", "later", "1Gi"), func(c *controllertest.Cluster) error {
			_, err := c.Client.StorageV1().StorageClasses().Create(ctx, class("later", localpath.Provisioner, storagev1.VolumeBindingImmediate), metav1.CreateOptions{})
			return err
		}, func(cl *corev1.PersistentVolumeClaim) bool {
			return cl.Annotations[storagehelpers.AnnStorageProvisioner] == localpath.Provisioner && cl.Annotations[storagehelpers.AnnBetaStorageProvisioner] == localpath.Provisioner
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := run(t, tc.claim)
			c.Quiet(t, 50*time.Millisecond)
			if err := tc.change(c); err != nil {
				t.Fatal(err)
			}
			controllertest.Eventually(t, func() string {
				cl, err := c.Client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "c", metav1.GetOptions{})
				if err != nil || !tc.want(cl) {
					return fmt.Sprintf("%v: %+v", err, cl)
				}
				return ""
			})
		})
	}
}

// Many claims and volumes at once: each claim gets one of its own, and nothing
// is left half bound.
func TestManyAtOnce(t *testing.T) {
	const n = 30
	var objs []runtime.Object
	for i := range n {
		objs = append(objs, claim(fmt.Sprintf("c%d", i), "", "1Gi"), volume(fmt.Sprintf("v%d", i), "", fmt.Sprintf("%dGi", 1+i%5)))
	}
	c := run(t, objs...)
	controllertest.Eventually(t, func() string {
		s := " " + show(c)
		if got := strings.Count(s, "=Bound:v"); got != n {
			return fmt.Sprintf("%d claims are bound: %s", got, s)
		}
		if got := strings.Count(s, "=Bound:c"); got != n {
			return fmt.Sprintf("%d volumes are bound: %s", got, s)
		}
		return ""
	})
}

// Events expire: what a claim waits for is told again before.
func TestReasonIsToldAgain(t *testing.T) {
	c := controllertest.New(t, claim("c", "", "1Gi"))
	ctl, err := New(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	ctl.sayAgain = 100 * time.Millisecond
	c.Run(t, ctl.Run)
	for i := range 3 {
		select {
		case e := <-c.Events.Events:
			if !strings.Contains(e, "FailedBinding no persistent volumes available") {
				t.Errorf("event %q", e)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("told %d times", i)
		}
	}
}
