package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestRealVolumes(t *testing.T) {
	w := realWorld(t)
	host := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	for _, f := range []string{outside, filepath.Join(host, "file")} {
		if err := os.WriteFile(f, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(host, "out")); err != nil {
		t.Fatal(err)
	}
	hostPath := func(path string, kind v1.HostPathType) v1.Volume {
		return v1.Volume{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path, Type: &kind}}}
	}

	// An image as a volume, subpaths of it, and variables of an init container.
	long := w.pod("long", func(p *v1.Pod) {
		script(p, `trap 'exit 0' TERM; echo "[$FROM] $(cat /img/bin/busybox | head -c 4 | tail -c 3) $(cat /one | head -c 4 | tail -c 3)"
			touch /img/x 2>/dev/null || echo read-only; while :; do sleep 0.1; done`)
		p.Spec.Volumes = []v1.Volume{
			{Name: "img", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "test.local/busybox:v1", PullPolicy: v1.PullNever}}},
			{Name: "env", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		p.Spec.InitContainers = []v1.Container{{Name: "init", Image: "test.local/busybox:v1", Command: []string{"sh", "-c", "echo \"FROM='a file'\" > /env/vars"},
			VolumeMounts: []v1.VolumeMount{{Name: "env", MountPath: "/env"}}}}
		c := &p.Spec.Containers[0]
		c.VolumeMounts = []v1.VolumeMount{{Name: "img", MountPath: "/img"}, {Name: "img", MountPath: "/one", SubPath: "bin/busybox"}}
		c.Env = []v1.EnvVar{{Name: "FROM", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "env", Path: "vars", Key: "FROM"}}}}
	})
	w.add(long)
	w.await("long", "ready", isReady)
	w.eventually("log", func() bool { return strings.Contains(w.log("uid-long", "long"), "read-only") })
	if got := w.log("uid-long", "long"); !strings.Contains(got, "[a file] ELF ELF\n") {
		t.Errorf("log %q", got)
	}

	// What must not be mounted.
	refused := func(name string, change func(p *v1.Pod), kind, want string) {
		w.add(w.pod(name, func(p *v1.Pod) {
			script(p, "sleep 1")
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/v"}}
			change(p)
		}))
		w.eventually(name, func() bool {
			if kind != "" {
				p := w.get(name)
				return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
					p.Status.ContainerStatuses[0].State.Waiting.Reason == kind && strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, want)
			}
			return w.said(want)
		})
	}
	refused("nodir", func(p *v1.Pod) { p.Spec.Volumes = []v1.Volume{hostPath(host+"/file", v1.HostPathDirectory)} }, "",
		`MountVolume.SetUp failed for volume "host" : hostPath type check failed: `+host+"/file is not a directory")
	refused("escape", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{hostPath(host, v1.HostPathDirectory)}
		p.Spec.Containers[0].VolumeMounts[0].SubPath = "out/secret"
	}, "CreateContainerConfigError", `failed to prepare subPath for volumeMount "host" of container "c"`)
	refused("noimage", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "test.local/no:v1", PullPolicy: v1.PullNever}}}}
	}, "ErrImageNeverPull", "test.local/no:v1")
	refused("nofolder", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "test.local/busybox:v1", PullPolicy: v1.PullNever}}}}
		p.Spec.Containers[0].VolumeMounts[0].SubPath = "bin/none"
	}, "CreateContainerConfigError", `subPath "bin/none": no such file or directory`)
	refused("noenv", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "X", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "host", Path: "vars", Key: "X", Optional: ptr.To(false)}}}}
	}, "CreateContainerConfigError", `couldn't parse env file: file "vars"`)

	// An agent that comes later leaves the image where it is mounted, and takes it
	// away with the pod.
	w.stop()
	w.start([]*v1.Pod{w.get("long")})
	w.eventually("adopted", func() bool {
		v, err := w.m.Find("default", "long", "")
		return err == nil && v.State == Running && v.Containers["c"].Running
	})
	if _, ok := w.store.Mounted(imageVolumeKey("uid-long", "img")); !ok {
		t.Error("the volume of an adopted pod was unmounted")
	}
	w.remove("long", 5)
	w.eventually("nothing is left", func() bool {
		keys, err := w.store.Mounts()
		return err == nil && len(keys) == 0
	})
}
