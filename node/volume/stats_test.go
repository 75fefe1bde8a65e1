package volume

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

func TestStats(t *testing.T) {
	w := newWorld(t)
	w.cfg.Objects = objects{cms: map[string]*v1.ConfigMap{"cfg": {Data: map[string]string{"a": "1"}}}, secrets: map[string]*v1.Secret{"s": {}}}
	p := claiming("uid-1", "data")
	p.Spec.Volumes = append(p.Spec.Volumes,
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cfg"}}}},
		v1.Volume{Name: "secret", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}},
		v1.Volume{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/etc"}}})
	vols, err := w.Setup(t.Context(), p, Fields{})
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := vols.Path("disk")
	if err := os.WriteFile(dir+"/big", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	list := vols.Stats()
	if len(list) != 4 {
		t.Fatalf("%+v", list)
	}
	for i, want := range []struct {
		name, claim string
		local       bool
	}{{"cfg", "", true}, {"disk", "", true}, {"secret", "", false}, {"v", "data", false}} {
		s := list[i]
		if s.Name != want.name || s.Claim != want.claim || s.Local != want.local || s.Capacity <= 0 || s.Used <= 0 && s.Name != "secret" || s.InodesUsed <= 0 {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	if list[1].Used < 1<<20 || list[1].Used > 2<<20 {
		t.Errorf("the emptyDir uses %d bytes", list[1].Used)
	}
}

// What is mounted below does not count, nor the second name of a file.
func TestUsageCountsEachFileOnce(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(dir+"/sub", 0o700), os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o600), os.Link(dir+"/a", dir+"/sub/b"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		other := dir + "/other"
		if err := errors.Join(os.Mkdir(other, 0o700), unix.Mount("tmpfs", other, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(other, unix.MNT_DETACH) })
		if err := os.WriteFile(other+"/c", make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bytes, inodes, err := Usage(dir)
	if err != nil || bytes < 1<<20 || bytes > 1<<20+64<<10 || inodes != 3 {
		t.Errorf("%d bytes in %d files, %v; want 1 MiB in 3", bytes, inodes, err)
	}
	if bytes, inodes, err := Usage(dir + "/gone"); bytes != 0 || inodes != 0 || err != nil {
		t.Errorf("nothing: %d, %d, %v", bytes, inodes, err)
	}
}
