package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/pod"
)

func TestOverLimit(t *testing.T) {
	const mi = 1 << 20
	limited := func(name, limit string) v1.Container {
		c := v1.Container{Name: name}
		if limit != "" {
			c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse(limit)}
		}
		return c
	}
	dir := func(limit string) v1.Volume {
		v := v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}
		if limit != "" {
			v.EmptyDir.SizeLimit = ptr.To(resource.MustParse(limit))
		}
		return v
	}
	for _, tc := range []struct {
		name       string
		containers []v1.Container
		volumes    []v1.Volume
		root, logs int64 // Mi, of the first container
		vol        int64
		limited    bool
		signal     string
		want       string
	}{
		{"no limit", []v1.Container{limited("a", "")}, []v1.Volume{dir("")}, 900, 900, 900, false, "", ""},
		{"within", []v1.Container{limited("a", "10Mi")}, []v1.Volume{dir("5Mi")}, 3, 3, 4, true, "", ""},
		{"emptyDir", []v1.Container{limited("a", "")}, []v1.Volume{dir("5Mi")}, 0, 0, 6, true, "emptydirfs.limit", `Usage of EmptyDir volume "v" exceeds the limit "5Mi". `},
		{"container, by its files", []v1.Container{limited("a", "10Mi"), limited("b", "50Mi")}, nil, 11, 0, 0, true, "ephemeralcontainerfs.limit", `Container a exceeded its local ephemeral storage limit "10Mi". `},
		{"container, by its logs", []v1.Container{limited("a", "10Mi"), limited("b", "50Mi")}, nil, 6, 5, 0, true, "ephemeralcontainerfs.limit", `Container a exceeded its local ephemeral storage limit "10Mi". `},
		{"pod, by an emptyDir without a limit", []v1.Container{limited("a", "10Mi"), limited("b", "10Mi")}, []v1.Volume{dir("")}, 5, 5, 11, true, "ephemeralpodfs.limit", "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "},
		{"another container without a limit counts for the pod", []v1.Container{limited("a", ""), limited("b", "10Mi")}, nil, 11, 0, 0, true, "ephemeralpodfs.limit", "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "},
	} {
		p := eviction.Pod{Pod: &v1.Pod{Spec: v1.PodSpec{Containers: tc.containers, Volumes: tc.volumes}}, Volumes: eviction.Files{Bytes: tc.vol * mi},
			Containers: []eviction.Container{{Name: "a", Root: eviction.Files{Bytes: tc.root * mi}, Logs: eviction.Files{Bytes: tc.logs * mi}}}}
		if got := limitsDisk(p.Pod); got != tc.limited {
			t.Errorf("%s: is measured: %v", tc.name, got)
		}
		if signal, got := overLimit(p, map[string]int64{"v": tc.vol * mi}); signal != tc.signal || got != tc.want {
			t.Errorf("%s: %s %q, want %s %q", tc.name, signal, got, tc.signal, tc.want)
		}
	}
	inMemory := &v1.Pod{Spec: v1.PodSpec{Volumes: []v1.Volume{dir("5Mi")}}}
	inMemory.Spec.Volumes[0].EmptyDir.Medium = v1.StorageMediumMemory
	if limitsDisk(inMemory) {
		t.Error("an emptyDir in memory is limited by its mount, and takes no disk")
	}
}

// fullImages has 5 MiB in each container's root.
type fullImages struct{ noImages }

func (fullImages) MountUsage(string) (int64, int64, error) { return 5 << 20, 1, nil }

func TestWhoIsOverTheLimitGoes(t *testing.T) {
	c := config(t)
	c.Images = fullImages{}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	h := &hogs{views: map[types.UID]*pod.View{}, due: map[types.UID]time.Time{}, freed: func() {}}
	for name, change := range map[types.UID]func(*v1.Pod){
		"over": func(*v1.Pod) {},
		"within": func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Limits[v1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
		},
		"manifest": func(p *v1.Pod) { p.Annotations = map[string]string{pod.SourceAnnotation: "file"} },
		"critical": func(p *v1.Pod) { p.Spec.Priority = ptr.To[int32](2_000_000_000) },
	} {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: string(name), UID: name}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c",
			Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("1Mi")}}}}}}
		change(p)
		h.views[name] = &pod.View{Pod: p, Sandbox: hogBox{}, State: pod.Running, Containers: map[string]pod.ContainerView{"c": {ID: "id", Running: true}}}
	}
	synctest.Test(t, func(t *testing.T) {
		a.self = newSelf(a, record.NewFakeRecorder(100))
		a.evictable = h
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a.keepLimits(ctx)
	})
	if !slices.Equal(h.told, []string{"over 1"}) {
		t.Errorf("%q", h.told)
	}
}

func TestFilesOf(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := filesOf(dir); got.Bytes < 64<<10 || got.Inodes != 2 {
		t.Errorf("%+v", got)
	}
	if got := filesOf(filepath.Join(dir, "gone")); got != (eviction.Files{}) {
		t.Errorf("what is gone takes %+v", got)
	}
}
