package storageapi

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/localpath"
	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func storages(t *testing.T) (*registrytest.Env, map[string]rest.Storage) {
	t.Helper()
	env := registrytest.New(t, AddDefaults)
	m, err := NewStorage(env.Options, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return env, m
}

func TestRefused(t *testing.T) {
	env, m := storages(t)
	meta := metav1.ObjectMeta{Name: "one"}
	class := func(change func(*storagev1.StorageClass)) runtime.Object {
		c := &storagev1.StorageClass{ObjectMeta: meta, Provisioner: "example.com/disk"}
		change(c)
		return c
	}
	driver := func(change func(*storagev1.CSIDriverSpec)) runtime.Object {
		d := &storagev1.CSIDriver{ObjectMeta: meta}
		change(&d.Spec)
		return d
	}
	node := func(drivers ...storagev1.CSINodeDriver) runtime.Object {
		return &storagev1.CSINode{ObjectMeta: meta, Spec: storagev1.CSINodeSpec{Drivers: drivers}}
	}
	attach := func(s storagev1.VolumeAttachmentSource) runtime.Object {
		return &storagev1.VolumeAttachment{ObjectMeta: meta, Spec: storagev1.VolumeAttachmentSpec{Attacher: "a.b", NodeName: "n", Source: s}}
	}
	for _, tc := range []struct {
		resource string
		obj      runtime.Object
		want     string
	}{
		{"storageclasses", class(func(c *storagev1.StorageClass) { c.Provisioner = "" }), "provisioner: Required value"},
		{"storageclasses", class(func(c *storagev1.StorageClass) { c.Provisioner = "a/b/c" }), "provisioner: Invalid value"},
		{"storageclasses", class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"": "x"} }), "parameters: Invalid value"},
		{"storageclasses", class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"x": strings.Repeat("x", 300<<10)} }), "parameters: Too long"},
		{"storageclasses", class(func(c *storagev1.StorageClass) {
			c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimRecycle)
		}), `reclaimPolicy: Unsupported value: "Recycle"`},
		{"storageclasses", class(func(c *storagev1.StorageClass) {
			c.VolumeBindingMode = ptr.To(storagev1.VolumeBindingMode("Later"))
		}), `volumeBindingMode: Unsupported value: "Later"`},
		{"storageclasses", class(func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone"}}}}
		}), "allowedTopologies[0].matchLabelExpressions[0].values: Required value"},
		{"volumeattributesclasses", &storagev1.VolumeAttributesClass{ObjectMeta: meta, DriverName: "d"}, "parameters: Required value"},
		{"csidrivers", driver(func(s *storagev1.CSIDriverSpec) { s.FSGroupPolicy = ptr.To(storagev1.FSGroupPolicy("x")) }), "spec.fsGroupPolicy: Unsupported value"},
		{"csidrivers", driver(func(s *storagev1.CSIDriverSpec) { s.TokenRequests = []storagev1.TokenRequest{{}, {}} }), "spec.tokenRequests[1].audience: Duplicate value"},
		{"csidrivers", driver(func(s *storagev1.CSIDriverSpec) { s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{"x"} }), "spec.volumeLifecycleModes: Unsupported value"},
		{"csidrivers", driver(func(s *storagev1.CSIDriverSpec) { s.ServiceAccountTokenInSecrets = ptr.To(true) }), "no tokenRequests are specified"},
		{"csinodes", node(storagev1.CSINodeDriver{Name: "a.b"}), "spec.drivers[0].nodeID: Required value"},
		{"csinodes", node(storagev1.CSINodeDriver{Name: "a.b", NodeID: "1"}, storagev1.CSINodeDriver{Name: "a.b", NodeID: "1"}), "spec.drivers[1].name: Duplicate value"},
		{"csistoragecapacities", &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Name: "one", Namespace: "default"}, StorageClassName: "x",
			Capacity: ptr.To(resource.MustParse("-1"))}, "capacity: Invalid value"},
		{"volumeattachments", attach(storagev1.VolumeAttachmentSource{}), "spec.source: Required value"},
		{"volumeattachments", attach(storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("")}), "spec.source.persistentVolumeName: Required value"},
		{"volumeattachments", attach(storagev1.VolumeAttachmentSource{InlineVolumeSpec: &corev1.PersistentVolumeSpec{
			AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}}}), "spec.source.inlineVolumeSpec.hostPath: Forbidden"},
	} {
		namespace := ""
		if o, ok := tc.obj.(metav1.Object); ok {
			namespace = o.GetNamespace()
		}
		_, err := env.Create(registrytest.Context(namespace, gvr(tc.resource)), m[tc.resource], tc.obj)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.resource, err, tc.want)
		}
	}
}

func TestClassIsKeptAndShown(t *testing.T) {
	env, m := storages(t)
	s := m["storageclasses"].(rest.StandardStorage)
	ctx := registrytest.Context("", gvr("storageclasses"))
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast", Annotations: map[string]string{DefaultAnnotation: "true"}}, Provisioner: "example.com/disk"}
	env.Scheme.Default(c)
	made, err := s.Create(ctx, c, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	table, err := s.(rest.TableConvertor).ConvertToTable(ctx, made, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := table.Rows[0].Cells[:5], []any{"fast (default)", "example.com/disk", "Delete", "Immediate", false}; !equal(got, want) {
		t.Errorf("row %v, want %v", got, want)
	}
	changed := made.DeepCopyObject().(*storagev1.StorageClass)
	changed.Provisioner, changed.Parameters = "example.com/other", map[string]string{"a": "b"}
	_, _, err = s.Update(ctx, "fast", rest.DefaultUpdatedObjectInfo(changed), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	for _, want := range []string{"provisioner: Invalid value", "parameters: Invalid value", "field is immutable"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func equal(a, b []any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestDefaultClass(t *testing.T) {
	class := func(name string, age time.Duration, value string) *storagev1.StorageClass {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age)),
			Annotations: map[string]string{DefaultAnnotation: value}}}
	}
	for _, tc := range []struct {
		classes []*storagev1.StorageClass
		want    string
	}{
		{nil, ""},
		{[]*storagev1.StorageClass{class("a", 0, "false"), class("b", 0, "")}, ""},
		{[]*storagev1.StorageClass{class("a", time.Hour, "true"), class("b", time.Minute, "true"), class("c", 0, "false")}, "b"},
		{[]*storagev1.StorageClass{class("b", 0, "true"), class("a", 0, "true")}, "a"},
	} {
		got := ""
		if c := Default(tc.classes); c != nil {
			got = c.Name
		}
		if got != tc.want {
			t.Errorf("default class %q, want %q", got, tc.want)
		}
	}
}

func TestLocalPathWarnings(t *testing.T) {
	c := &storagev1.StorageClass{Provisioner: localpath.Provisioner, AllowVolumeExpansion: ptr.To(true), MountOptions: []string{"noatime"}}
	setClassDefaults(c)
	if got := strings.Join(classWarnings(c), "\n"); !strings.Contains(got, "WaitForFirstConsumer") || !strings.Contains(got, "expanded") || !strings.Contains(got, "mountOptions") {
		t.Errorf("warnings %q", got)
	}
	c = &storagev1.StorageClass{Provisioner: localpath.Provisioner, VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)}
	if got := classWarnings(c); got != nil {
		t.Errorf("warnings %q", got)
	}
}
