package admission

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/utils/ptr"
)

// fakeObjects is Objects on plain values.
type fakeObjects struct {
	account    *corev1.ServiceAccount
	namespaces map[string]*corev1.Namespace
	pods       []corev1.Pod
	node       *corev1.Node
	limits     []corev1.LimitRange
	classes    []nodev1.RuntimeClass
	storage    []storagev1.StorageClass
}

func notFound(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

func (f *fakeObjects) ServiceAccount(_ context.Context, _, name string) (*corev1.ServiceAccount, error) {
	if f.account == nil || f.account.Name != name {
		return nil, notFound("serviceaccounts", name)
	}
	return f.account, nil
}

func (f *fakeObjects) Pod(_ context.Context, ns, name string) (*corev1.Pod, error) {
	for i := range f.pods {
		if f.pods[i].Name == name && f.pods[i].Namespace == ns {
			return &f.pods[i], nil
		}
	}
	return nil, notFound("pods", name)
}

func (f *fakeObjects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	return nil, notFound("secrets", name)
}

func (f *fakeObjects) Node(_ context.Context, name string) (*corev1.Node, error) {
	if f.node != nil && f.node.Name == name {
		return f.node, nil
	}
	return nil, notFound("nodes", name)
}

func (f *fakeObjects) Namespace(_ context.Context, name string) (*corev1.Namespace, error) {
	if n, ok := f.namespaces[name]; ok {
		return n, nil
	}
	return nil, notFound("namespaces", name)
}

func (f *fakeObjects) RuntimeClass(_ context.Context, name string) (*nodev1.RuntimeClass, error) {
	for i := range f.classes {
		if f.classes[i].Name == name {
			return &f.classes[i], nil
		}
	}
	return nil, notFound("runtimeclasses", name)
}

func (f *fakeObjects) StorageClass(_ context.Context, name string) (*storagev1.StorageClass, error) {
	for i := range f.storage {
		if f.storage[i].Name == name {
			return &f.storage[i], nil
		}
	}
	return nil, notFound("storageclasses", name)
}

func (f *fakeObjects) StorageClasses(context.Context) ([]storagev1.StorageClass, error) {
	return f.storage, nil
}

func (f *fakeObjects) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	return nil, notFound("persistentvolumes", name)
}

func (f *fakeObjects) Pods(context.Context, string) ([]corev1.Pod, error) { return f.pods, nil }

func (f *fakeObjects) LimitRanges(context.Context, string) ([]corev1.LimitRange, error) {
	return f.limits, nil
}

func usual() *fakeObjects {
	return &fakeObjects{
		account:    &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "reg"}}},
		namespaces: map[string]*corev1.Namespace{"ns": {ObjectMeta: metav1.ObjectMeta{Name: "ns"}}},
	}
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

// run sends a request through the chain and gives the object as it came out.
func run(t *testing.T, o Objects, u user.Info, op admission.Operation, resource, sub, ns, name string, obj, old runtime.Object) error {
	t.Helper()
	chain, err := New(o, Config{})
	if err != nil {
		t.Fatal(err)
	}
	kind := schema.GroupVersionKind{Version: "v1", Kind: strings.ToUpper(resource[:1]) + strings.TrimSuffix(resource[1:], "s")}
	a := admission.NewAttributesRecord(obj, old, kind, ns, name, schema.GroupVersionResource{Version: "v1", Resource: resource}, sub, op, nil, false, u)
	ctx := context.Background()
	if err := chain.(admission.MutationInterface).Admit(ctx, a, nil); err != nil {
		return err
	}
	return chain.(admission.ValidationInterface).Validate(ctx, a, nil)
}

var admin = &user.DefaultInfo{Name: "admin"}

func createPod(t *testing.T, o Objects, p *corev1.Pod) error {
	return run(t, o, admin, admission.Create, "pods", "", "ns", p.Name, p, nil)
}

func TestPodGetsAccountTokenAndTolerations(t *testing.T) {
	p := pod()
	if err := createPod(t, usual(), p); err != nil {
		t.Fatal(err)
	}
	s := p.Spec
	if s.ServiceAccountName != "default" || s.DeprecatedServiceAccount != "default" {
		t.Errorf("account %q, %q", s.ServiceAccountName, s.DeprecatedServiceAccount)
	}
	if len(s.Volumes) != 1 || s.Volumes[0].Projected == nil || len(s.Containers[0].VolumeMounts) != 1 || s.Containers[0].VolumeMounts[0].MountPath != tokenMountPath {
		t.Errorf("volumes %+v, mounts %+v", s.Volumes, s.Containers[0].VolumeMounts)
	}
	if len(s.ImagePullSecrets) != 1 || len(s.Tolerations) != 2 || *s.Priority != 0 {
		t.Errorf("spec %+v", s)
	}
	// A template that was read back and applied again must not gain a second volume.
	if err := createPod(t, usual(), p); err != nil || len(p.Spec.Volumes) != 1 || len(p.Spec.Tolerations) != 2 {
		t.Errorf("second pass: %v, %+v", err, p.Spec)
	}
}

func TestDefaultTolerations(t *testing.T) {
	for timeout, want := range map[time.Duration]int64{0: 0, 30 * time.Second: 30, 1500 * time.Millisecond: 2} {
		chain, err := New(usual(), Config{PodEvictionTimeout: &timeout})
		if err != nil {
			t.Fatal(err)
		}
		p := pod(func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
		})
		a := admission.NewAttributesRecord(p, nil, corev1.SchemeGroupVersion.WithKind("Pod"), "ns", "p", corev1.SchemeGroupVersion.WithResource("pods"), "", admission.Create, nil, false, admin)
		if err := chain.(admission.MutationInterface).Admit(t.Context(), a, nil); err != nil {
			t.Fatal(err)
		}
		if l := p.Spec.Tolerations; len(l) != 2 || l[0].TolerationSeconds != nil || l[1].Key != corev1.TaintNodeUnreachable || *l[1].TolerationSeconds != want {
			t.Errorf("%v: tolerations %+v", timeout, l)
		}
	}
	negative := -time.Second
	if _, err := New(usual(), Config{PodEvictionTimeout: &negative}); err == nil || !strings.Contains(err.Error(), "the pod eviction timeout -1s is negative") {
		t.Error(err)
	}
}

func TestUpdatedPodKeepsDefaults(t *testing.T) {
	old := pod()
	if err := createPod(t, usual(), old); err != nil {
		t.Fatal(err)
	}
	p := old.DeepCopy()
	p.Spec.Priority, p.Spec.PreemptionPolicy = nil, nil
	p.Spec.Tolerations = []corev1.Toleration{{Key: "mine", Operator: corev1.TolerationOpExists}}
	if err := run(t, usual(), admin, admission.Update, "pods", "", "ns", p.Name, p, old); err != nil {
		t.Fatal(err)
	}
	if s := p.Spec; len(s.Tolerations) != 3 || s.Priority == nil || s.PreemptionPolicy == nil {
		t.Errorf("spec %+v", s)
	}
	if err := run(t, usual(), admin, admission.Update, "pods", "status", "ns", p.Name, pod(), old); err != nil {
		t.Fatal(err)
	}
}

func TestNoTokenWhereRefused(t *testing.T) {
	p := pod(func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = ptr.To(false) })
	if err := createPod(t, usual(), p); err != nil || len(p.Spec.Volumes) != 0 {
		t.Errorf("%v, %+v", err, p.Spec.Volumes)
	}
}

func TestRefusals(t *testing.T) {
	node := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	restricted := usual()
	restricted.namespaces["ns"].Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	dying := usual()
	dying.namespaces["ns"].Status.Phase = corev1.NamespaceTerminating
	limited := usual()
	limited.limits = []corev1.LimitRange{{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer,
		Max: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}}}}}
	big := pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"memory": resource.MustParse("2Gi")}
	})
	elsewhere := pod(func(p *corev1.Pod) { p.Spec.NodeName = "n2" })
	foreign := usual()
	foreign.pods = []corev1.Pod{*elsewhere}
	nodeObj := func(name string, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	for _, tc := range []struct {
		name, want    string
		objects       *fakeObjects
		user          user.Info
		op            admission.Operation
		resource, sub string
		object        string
		obj, old      runtime.Object
	}{
		{"missing namespace", `namespaces "ns" not found`, &fakeObjects{}, admin, admission.Create, "pods", "", "p", pod(), nil},
		{"dying namespace", "because it is being terminated", dying, admin, admission.Create, "configmaps", "", "c", &corev1.ConfigMap{}, nil},
		{"immortal namespace", "this namespace may not be deleted", usual(), admin, admission.Delete, "namespaces", "", "kube-system", nil, nil},
		{"missing account", `serviceaccount "x" not found`, usual(), admin, admission.Create, "pods", "", "p",
			pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "x" }), nil},
		{"unknown priority class", "no PriorityClass with name gold was found", usual(), admin, admission.Create, "pods", "", "p",
			pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "gold" }), nil},
		{"unknown runtime class", `pod rejected: RuntimeClass "gvisor" not found`, usual(), admin, admission.Create, "pods", "", "p",
			pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("gvisor") }), nil},
		{"over the limit", "maximum memory usage per Container is 1Gi, but limit is 2Gi", limited, admin, admission.Create, "pods", "", "p", big, nil},
		{"no limit given", "No limit is specified", limited, admin, admission.Create, "pods", "", "p", pod(), nil},
		{"pod security", `violates PodSecurity "restricted:latest"`, restricted, admin, admission.Create, "pods", "", "p", pod(), nil},
		{"bad pod security label", "pod-security.kubernetes.io/enforce", usual(), admin, admission.Create, "namespaces", "", "x",
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "harsh"}}}, nil},
		{"resource quota", "resource quotas are not enforced", usual(), admin, admission.Create, "resourcequotas", "", "q", &corev1.ResourceQuota{}, nil},
		{"node creates a plain pod", "can only create mirror pods", usual(), node, admission.Create, "pods", "", "p", pod(), nil},
		{"node deletes another's pod", "can only delete pods with spec.nodeName set to itself", foreign, node, admission.Delete, "pods", "", "p", nil, nil},
		{"node writes another's pod status", "can only update pod status", usual(), node, admission.Update, "pods", "status", "p", elsewhere, elsewhere},
		{"node writes another node", "is not allowed to modify node", usual(), node, admission.Update, "nodes", "status", "n2", nodeObj("n2", nil), nodeObj("n2", nil)},
		{"node sets a restricted label", "is not allowed to modify labels", usual(), node, admission.Update, "nodes", "", "n1",
			nodeObj("n1", map[string]string{"node-restriction.kubernetes.io/x": "y"}), nodeObj("n1", nil)},
		{"node gives itself an owner", "is not allowed to modify ownerReferences", usual(), node, admission.Update, "nodes", "", "n1",
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", OwnerReferences: []metav1.OwnerReference{{Kind: "Pod", Name: "gone"}}}}, nodeObj("n1", nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := "ns"
			if tc.resource == "nodes" || tc.resource == "namespaces" {
				ns = ""
			}
			err := run(t, tc.objects, tc.user, tc.op, tc.resource, tc.sub, ns, tc.object, tc.obj, tc.old)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestLimitRangeDefaults(t *testing.T) {
	o := usual()
	o.limits = []corev1.LimitRange{{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer,
		Default:        corev1.ResourceList{"cpu": resource.MustParse("500m")},
		DefaultRequest: corev1.ResourceList{"cpu": resource.MustParse("100m")}}}}}}
	p := pod()
	if err := createPod(t, o, p); err != nil {
		t.Fatal(err)
	}
	r := p.Spec.Containers[0].Resources
	if got := r.Limits["cpu"]; got.String() != "500m" {
		t.Errorf("limits %v", r.Limits)
	}
	if got := r.Requests["cpu"]; got.String() != "100m" {
		t.Errorf("requests %v", r.Requests)
	}
}

func TestSystemPriority(t *testing.T) {
	p := pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-node-critical" })
	if err := createPod(t, usual(), p); err != nil || *p.Spec.Priority != 2000001000 {
		t.Errorf("%v, %v", err, p.Spec.Priority)
	}
}

func TestRuntimeClass(t *testing.T) {
	exists := func(key string) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists}
	}
	o := usual()
	o.classes = []nodev1.RuntimeClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "plain"}, Handler: "runc"},
		{ObjectMeta: metav1.ObjectMeta{Name: "heavy"}, Handler: "vm", Overhead: &nodev1.Overhead{PodFixed: corev1.ResourceList{"cpu": resource.MustParse("10m")}},
			Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"}, Tolerations: []corev1.Toleration{exists("vm"), exists("both")}}},
	}
	named := func(class string, change ...func(*corev1.Pod)) *corev1.Pod {
		return pod(append(change, func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To(class) })...)
	}
	ten, eleven := corev1.ResourceList{"cpu": resource.MustParse("10m")}, corev1.ResourceList{"cpu": resource.MustParse("11m")}
	for want, p := range map[string]*corev1.Pod{
		`RuntimeClass "" not found`:                                                      named(""),
		"Pod's Overhead doesn't match RuntimeClass's defined Overhead":                   named("heavy", func(p *corev1.Pod) { p.Spec.Overhead = eleven }),
		"Pod Overhead set without corresponding RuntimeClass":                            named("plain", func(p *corev1.Pod) { p.Spec.Overhead = ten }),
		"Pod Overhead set without corresponding RuntimeClass defined Over":               pod(func(p *corev1.Pod) { p.Spec.Overhead = ten }),
		"runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no": named("heavy", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"vm": "no"} }),
	} {
		if err := createPod(t, o, p); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	p := named("plain")
	if err := createPod(t, o, p); err != nil || p.Spec.Overhead != nil || p.Spec.NodeSelector != nil {
		t.Errorf("%v, %+v", err, p.Spec)
	}
	p = named("heavy", func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{"disk": "fast"}
		p.Spec.Tolerations = []corev1.Toleration{{Key: "both", Operator: corev1.TolerationOpEqual, Value: "x"}}
	})
	for range 2 { // what came out may be sent again
		if err := createPod(t, o, p); err != nil {
			t.Fatal(err)
		}
		if s := p.Spec; s.Overhead.Cpu().String() != "10m" || len(s.NodeSelector) != 2 || len(s.Tolerations) != 4 || s.Tolerations[1].Value != "" {
			t.Errorf("spec %+v", s)
		}
	}
	if len(o.classes[1].Scheduling.NodeSelector) != 1 {
		t.Error("the class was changed")
	}
}

func TestResize(t *testing.T) {
	o := usual()
	o.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{DeclaredFeatures: []string{"InPlacePodVerticalScalingInitContainers"},
		Allocatable: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")}}}
	o.limits = []corev1.LimitRange{{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer,
		Max: corev1.ResourceList{"memory": resource.MustParse("2Gi")}}}}}}
	sized := func(cpu, memory string) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.NodeName = "n"
			l := corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: l, Limits: l}
		})
	}
	next := sized("2", "1Gi")
	next.Generation = 2
	old := usual()
	old.node = o.node.DeepCopy()
	old.node.Status.DeclaredFeatures = nil
	if err := run(t, old, admin, admission.Update, "pods", "resize", "ns", "p", next, sized("1", "1Gi")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `not available on node "n"`) {
		t.Error(err)
	}
	for _, tc := range []struct{ cpu, memory, want string }{
		{"2", "1Gi", ""},
		{"3", "1Gi", "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000"},
		{"3", "2Gi", "cpu, requested: 3000, allocatable: 2000; memory, requested: 2147483648, allocatable: 1073741824"},
		{"1", "3Gi", "maximum memory usage per Container is 2Gi, but limit is 3Gi"},
	} {
		next := sized(tc.cpu, tc.memory)
		next.Generation = 2
		err := run(t, o, admin, admission.Update, "pods", "resize", "ns", "p", next, sized("1", "1Gi"))
		if tc.want == "" && err != nil || tc.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v: %v", tc, err)
		}
	}
}
