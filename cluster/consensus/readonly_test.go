package consensus

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// ext4Disk mounts a file system of its own on a loop device. again mounts it anew
// after the kernel has made it read-only.
func ext4Disk(t *testing.T) (dir string, again func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-F", image)
	run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir, func() {
		t.Helper()
		eventually(t, "nobody uses the disk", func() bool { return syscall.Unmount(dir, 0) == nil })
		// Somebody's mount namespace can have it still, by which the kernel keeps the
		// file system as it is: the disk that is repaired is a copy.
		before := image
		image += ".repaired"
		run("cp", "--sparse=always", before, image)
		if out, err := exec.Command("e2fsck", "-p", "-f", image).CombinedOutput(); err != nil && !strings.Contains(string(out), "clean") {
			t.Logf("e2fsck: %v: %s", err, out)
		}
		run("mount", "-o", "loop", image, dir)
	}
}

// abort makes the kernel treat an ext4 as it does after an error of the disk: it
// becomes read-only under those who write.
func abort(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "abort"); err != nil {
		t.Skipf("can't make a file system fail here: %v", err)
	}
}

// TestReadOnlyLeader: the disk of the leader becomes read-only. Others lead, it
// says why it can't, serves what it has, and comes back after a restart.
func TestReadOnlyLeader(t *testing.T) {
	var servers []Server
	var configs []Config
	disks, repair := map[string]string{}, map[string]func(){}
	for _, id := range []string{"a", "b", "c"} {
		l := listen(t, "127.0.0.1:0")
		disks[id], repair[id] = ext4Disk(t)
		servers = append(servers, Server{ID: id, Addr: l.Addr().String()})
		configs = append(configs, Config{NodeID: id, DataDir: filepath.Join(disks[id], "data"), Listener: l, HeartbeatTimeout: hasty, ElectionWait: 2 * time.Second, Reserve: 1 << 20})
	}
	var members []*member
	for _, c := range configs {
		c.Bootstrap = servers
		members = append(members, start(t, c))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	leader, others := leaderOf(t, members)
	leader.put(t, "/before", "x", 0)
	abort(t, disks[leader.c.NodeID])
	n := 0
	put := func() error {
		n++
		_, err := others[n%2].Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: fmt.Sprintf("/k%d", n), Value: []byte("v"), Expect: fsm.Any}))
		return err
	}
	eventually(t, "writes go on without it", func() bool { return put() == nil })
	eventually(t, "it leads no more and says why", func() bool {
		return !leader.IsLeader() && strings.Contains(leader.Stats().Problem, "read-only file system")
	})
	if _, ok := leader.config.FSM.Store().View().Get("/before"); !ok {
		t.Error("what it had is gone")
	}
	leader.stop(t)
	// While it is read-only it does not start, and says so.
	err := tryStart(t, leader.config, leader.config.DataDir, leader.config.FSM)
	if err == nil || !errors.Is(err, syscall.EROFS) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), leader.config.DataDir) {
		t.Errorf("a start on the read-only disk: %v", err)
	}
	repair[leader.c.NodeID]()
	again := leader.restart(t)
	again.awaitReady(t)
	if err := again.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := again.config.FSM.Store().View().Len(), others[0].config.FSM.Store().View().Len(); got != want {
		t.Errorf("after the restart %d keys, %d are there", got, want)
	}
}

// TestSnapshotOnAFullDisk: a snapshot for which there is no space leaves nothing
// behind, however often it is tried, and succeeds when there is.
func TestSnapshotOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	m := diskFullMember(t, dir, 4<<20)
	value := strings.Repeat("v", 4096)
	for i := range 1200 {
		m.put(t, fmt.Sprintf("/k%06d", i), value, 0)
	}
	ballast := fill(t, dir)
	free := func() uint64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bfree * uint64(st.Bsize)
	}
	before := free()
	r := m.raft.Load()
	snapshot := func() error { return r.Snapshot().Error() }
	for range 3 {
		if err := snapshot(); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("a snapshot on a full disk: %v", err)
		}
	}
	if names, err := os.ReadDir(filepath.Join(raftdir.Path(m.config.DataDir), "snapshots")); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if after := free(); after+(64<<10) < before {
		t.Errorf("%d bytes are free, were %d", after, before)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := snapshot(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		t.Errorf("with space: %v", err)
	}
	m = m.restart(t)
	m.awaitReady(t)
	if n := m.config.FSM.Store().View().Len(); n != 1200 {
		t.Errorf("%d keys", n)
	}
}
