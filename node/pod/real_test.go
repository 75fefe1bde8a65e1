package pod

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

// realWorld is a world whose containers are real; only API and network are not.
func realWorld(t *testing.T) *world {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs real containers")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("needs busybox-static: make deps")
	}
	dir := t.TempDir()
	shim := os.Getenv("SKIFF_TEST_SHIM")
	if shim == "" {
		shim = filepath.Join(dir, "skiff-shim")
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "seccomp netgo osusergo runc_nocriu", "-ldflags", "-s -w -linkmode external -extldflags -static",
			"-o", shim, "github.com/skiff-sh/skiff/cmd/skiff-shim")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building the shim: %v\n%s", err, b)
		}
	}
	state, err := os.MkdirTemp("/run", "skiff-pod-test-")
	if err != nil {
		t.Fatal(err)
	}
	rt, err := runtime.New(runtime.Config{StateDir: state, DataDir: filepath.Join(dir, "node"), CgroupRoot: "skiff-test/" + filepath.Base(state), ShimPath: shim, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(image.Config{Dir: filepath.Join(dir, "images"), Owner: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Import(t.Context(), archive(t, dir, busybox), nil); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.stop()
	w.runtime, w.store = Wrap(rt), store
	t.Cleanup(func() { // before the world's own: LIFO
		w.stop()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		boxes, err := rt.Sandboxes(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, b := range boxes {
			if err := b.Remove(ctx); err != nil {
				t.Error(err)
			}
		}
		keys, _ := store.Mounts()
		for _, k := range keys {
			if err := store.Unmount(k); err != nil {
				t.Error(err)
			}
		}
		_ = rt.Close()
		_ = store.Close()
		w.removeCgroups("skiff-test/" + filepath.Base(state))
		_ = os.RemoveAll(state)
	})
	w.start(nil)
	return w
}

// removeCgroups removes a cgroup without processes, and those in it, from every
// hierarchy of version 1 and 2.
func (w *world) removeCgroups(path string) {
	w.t.Helper()
	for _, under := range []string{"", "*"} {
		roots, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", under, path))
		if err != nil {
			w.t.Error(err)
		}
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(dir string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs = append(dirs, dir)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				w.eventually(dir+" is removed", func() bool { // the kernel may need a moment
					err := os.Remove(dir)
					return err == nil || os.IsNotExist(err)
				})
			}
		}
	}
}

// archive makes an image archive that holds busybox.
func archive(t *testing.T, dir, busybox string) string {
	t.Helper()
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	add := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "tmp/", "etc/"} {
		add(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "touch", "tail"} {
		add(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, imagev1.Config{Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", goruntime.GOARCH
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("test.local/busybox:v1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "busybox.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func script(p *v1.Pod, text string) {
	c := &p.Spec.Containers[0]
	c.Image, c.Command = "test.local/busybox:v1", []string{"sh", "-c", text}
}

func (w *world) log(uid, name string) string {
	b, _ := os.ReadFile(filepath.Join(w.dir, "logs", "default_"+name+"_"+uid, "c", "0.log"))
	return string(b)
}

func TestRealContainers(t *testing.T) {
	w := realWorld(t)
	cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "v1", "f": "inner"}}
	if _, err := w.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	long := w.pod("long", func(p *v1.Pod) {
		script(p, `trap 'exit 0' TERM; echo "$COLOR $(cat /cfg/k) $(cat /sub)"; touch /data/x; while :; do sleep 0.1; done`)
		p.Spec.Volumes = []v1.Volume{{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}}}},
			{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}}}
		c := &p.Spec.Containers[0]
		c.VolumeMounts = []v1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}, {Name: "data", MountPath: "/data"}, {Name: "cfg", MountPath: "/sub", SubPath: "f"}}
		c.Env = []v1.EnvVar{{Name: "COLOR", Value: "blue"}}
		c.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"cat", "/data/x"}}}, PeriodSeconds: 1}
	})
	w.add(long)
	p := w.await("long", "ready", isReady)
	w.eventually("its line is logged", func() bool { return strings.Contains(w.log("uid-long", "long"), "stdout F blue v1 inner\n") })
	fail := w.pod("fail", func(p *v1.Pod) {
		script(p, "echo broken > /dev/termination-log; exit 7")
		p.Spec.RestartPolicy = v1.RestartPolicyNever
	})
	w.add(fail)
	f := w.await("fail", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if s := f.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 7 || s.Message != "broken\n" || s.Reason != "Error" {
		t.Errorf("%+v", f.Status.ContainerStatuses[0])
	}
	nocmd := w.pod("nocmd", func(p *v1.Pod) {
		script(p, "")
		p.Spec.Containers[0].Command = []string{"/nope"}
		p.Spec.RestartPolicy = v1.RestartPolicyNever
	})
	w.add(nocmd)
	n := w.await("nocmd", "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if s := n.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "StartError" || !strings.Contains(s.Message, "/nope") {
		t.Errorf("%+v", n.Status.ContainerStatuses[0])
	}

	// The agent ends as if it were killed; the container goes on and is adopted.
	id := p.Status.ContainerStatuses[0].ContainerID
	w.stop()
	w.start([]*v1.Pod{w.get("long"), w.get("fail")})
	w.eventually("adopted", func() bool {
		v, err := w.m.Find("default", "long", "")
		return err == nil && v.State == Running && v.Containers["c"].Running
	})
	p = w.get("long")
	if c := p.Status.ContainerStatuses[0]; c.ContainerID != id || c.RestartCount != 0 || !isReady(p) {
		t.Errorf("%+v", c)
	}
	cm = cm.DeepCopy()
	cm.Data["k"] = "v2"
	if _, err := w.client.CoreV1().ConfigMaps("default").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the adopted container sees a change", func() bool {
		v, err := w.m.Find("default", "long", "")
		if err != nil || v.Sandbox == nil {
			return false
		}
		var out bytes.Buffer
		_, err = v.Sandbox.Exec(t.Context(), v.Containers["c"].ID, runtime.ExecConfig{Args: []string{"cat", "/cfg/k"}}, nil, &out, io.Discard, nil)
		return err == nil && out.String() == "v2"
	})
	w.remove("long", 5)
	w.eventually("deleted", func() bool { return w.get("long") == nil })
	w.m.Remove("uid-long")
	w.eventually("nothing is left", func() bool {
		keys, err := w.store.Mounts()
		boxes, err2 := w.runtime.Sandboxes(t.Context())
		_, err3 := os.Stat(filepath.Join(w.dir, "pods", "uid-long"))
		return err == nil && err2 == nil && len(keys) == 0 && len(boxes) == 0 && os.IsNotExist(err3)
	})
}
