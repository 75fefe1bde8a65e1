package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// smallDisk mounts a file system of so many bytes.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("skiff-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("can't mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill takes all space of the disk that dir is on.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := 1 << 20; chunk >= 512; chunk /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, chunk))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk ended with %v", err)
	}
	return path
}

func diskFullMember(t *testing.T, dir string, reserve int64) *member {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{
		NodeID: "a", DataDir: filepath.Join(dir, "data"), Listener: l, Reserve: reserve,
		HeartbeatTimeout: 200 * time.Millisecond, ElectionWait: time.Second,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	})
	m.awaitReady(t)
	return m
}

// writeUntilRefused writes until an error, and returns how many writes were
// acknowledged.
func writeUntilRefused(t *testing.T, m *member, from int) (acked int, err error) {
	t.Helper()
	value := bytes.Repeat([]byte("v"), 4096)
	for i := from; i < from+100_000; i++ {
		op := fsm.Op{Type: fsm.Put, Key: fmt.Sprintf("/k%06d", i), Value: value, Expect: 0}
		if _, err := m.Propose(t.Context(), fsm.One(op)); err != nil {
			return i - from, err
		}
	}
	t.Fatal("the disk does not become full")
	return 0, nil
}

func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	m := diskFullMember(t, dir, 4<<20)
	ballast := fill(t, dir)
	acked, err := writeUntilRefused(t, m, 0)
	if !errors.Is(err, ErrNoSpace) || errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("with a full disk: %v", err)
	}
	t.Logf("%d writes, then: %v", acked, err)
	if !m.IsLeader() {
		t.Error("it no longer leads")
	}
	if p := m.Stats().Problem; !strings.Contains(p, "no space") {
		t.Errorf("stats name the problem %q", p)
	}
	for i := range 3 { // refused at once, and for reading all is there
		begin := time.Now()
		if _, err := writeUntilRefused(t, m, 100_000+i); !errors.Is(err, ErrNoSpace) || time.Since(begin) > time.Second {
			t.Errorf("write %d: %v after %v", i, err, time.Since(begin))
		}
		if err := m.ReadIndex(t.Context()); err != nil {
			t.Errorf("read: %v", err)
		}
	}
	if n := m.config.FSM.Store().View().Count("/k"); n != acked {
		t.Errorf("%d keys, %d were acknowledged", n, acked)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes go on", func() bool {
		r, err := m.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/after", Expect: fsm.Any}))
		return err == nil && r.Err == nil
	})
	if p := m.Stats().Problem; p != "" {
		t.Errorf("stats still name the problem %q", p)
	}
}

// TestDiskFullWithoutReserve is the disk that somebody else fills faster than
// the reserve helps: Raft's append fails, and the member can't even save the term
// of the next election.
func TestDiskFullWithoutReserve(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	m := diskFullMember(t, dir, 4<<20)
	ballast := fill(t, dir)
	if err := os.Remove(filepath.Join(dir, "data", "raft", "reserve")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	ballast = fill(t, dir)
	acked, err := writeUntilRefused(t, m, 0)
	if !errors.Is(err, ErrNoSpace) || errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("with a full disk: %v", err)
	}
	eventually(t, "the append fails", func() bool { return !m.IsLeader() })
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := m.ReadIndex(t.Context()); err != nil {
			t.Fatalf("read: %v", err)
		}
		if _, err := writeUntilRefused(t, m, 100_000); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("write: %v", err)
		}
	}
	if n := m.config.FSM.Store().View().Count("/k"); n != acked {
		t.Errorf("%d keys, %d were acknowledged", n, acked)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leads and writes again", func() bool {
		r, err := m.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/after", Expect: fsm.Any}))
		return err == nil && r.Err == nil && m.IsLeader()
	})
	m = m.restart(t)
	m.awaitReady(t)
	if n := m.config.FSM.Store().View().Count("/k"); n != acked {
		t.Errorf("after a restart %d keys, %d were acknowledged", n, acked)
	}
}

// TestStopWithFullDisk stops and starts a member while there is no space.
func TestStopWithFullDisk(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	m := diskFullMember(t, dir, 4<<20)
	if err := os.Remove(filepath.Join(dir, "data", "raft", "reserve")); err != nil {
		t.Fatal(err)
	}
	ballast := fill(t, dir)
	acked, err := writeUntilRefused(t, m, 0)
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("with a full disk: %v", err)
	}
	m.stop(t)
	// And on the full disk it starts, and serves what it has.
	m = m.restart(t)
	eventually(t, "the log is replayed or waits for space", func() bool {
		return m.Stats().Problem != "" || m.IsLeader()
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	m.awaitReady(t)
	if n := m.config.FSM.Store().View().Count("/k"); n != acked {
		t.Errorf("%d keys, %d were acknowledged", n, acked)
	}
}

// populated is the data dir of a stopped member with snapshots and a log.
func populated(t *testing.T) (Config, int) {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{
		NodeID: "a", DataDir: t.TempDir(), Listener: l, SnapshotEntries: 100,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	})
	m.awaitReady(t)
	n := 0
	value := strings.Repeat("a recognizable value ", 50)
	for ; n < 150 || len(m.snaps.Files()) == 0; n++ {
		m.put(t, fmt.Sprintf("/k%06d", n), value, 0)
	}
	for range 20 {
		m.put(t, fmt.Sprintf("/k%06d", n), value, 0)
		n++
	}
	m.stop(t)
	return m.config, n
}

func TestRestartFromSnapshotAndLog(t *testing.T) {
	c, n := populated(t)
	c.Listener, c.FSM = listen(t, c.AdvertiseAddr), nil
	m := start(t, c)
	m.awaitReady(t)
	if got := m.config.FSM.Store().View().Len(); got != n {
		t.Errorf("%d keys, want %d", got, n)
	}
	if first, _ := m.log.FirstIndex(); first <= 1 {
		t.Errorf("the log still begins at %d", first)
	}
}

// TestDamagedFiles damages each file at several places: either New or Run names
// the file and the command that recovers, or the damage is where nothing is.
func TestDamagedFiles(t *testing.T) {
	c, n := populated(t)
	snapshot := newestSnapshot(t, c.DataDir)
	log := raftdir.LogPath(c.DataDir)
	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	type damage struct {
		name string
		path string
		do   func([]byte) []byte
		hurt bool // it can't be without effect
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 0x10; return b }
	}
	cut := func(to int) func([]byte) []byte { return func(b []byte) []byte { return b[:to] } }
	cases := []damage{
		{"last entry", log, flip(bytes.LastIndex(content, []byte("recognizable"))), false},
		{"log is gone", log, func([]byte) []byte { return nil }, true},
		{"log is empty pages", log, func(b []byte) []byte { clear(b); return b }, true},
		{"log is text", log, func(b []byte) []byte { return []byte(strings.Repeat("hello\n", 2000)) }, true},
		{"log cut to its head", log, cut(8192), true},
		{"log cut to a quarter", log, cut(len(content) / 4), true},
		{"log cut in a page", log, cut(len(content)/2 + 100), false},
		{"snapshot flipped", snapshot, flip(5000), true},
		{"snapshot cut", snapshot, cut(5000), true},
		{"snapshot empty", snapshot, cut(0), true},
	}
	for i := range 40 { // all over the log
		cases = append(cases, damage{fmt.Sprintf("log flipped at %d/40", i), log, flip(len(content)/40*i + 33), false})
	}
	refused := 0
	for _, d := range cases {
		t.Run(d.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(c.DataDir)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, strings.TrimPrefix(d.path, c.DataDir))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if b = d.do(b); b == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			f := fsm.New(store.New(store.Config{}))
			err = tryStart(t, c, dir, f)
			if err == nil {
				if d.hurt {
					t.Error("it starts as if nothing were wrong")
				}
				// A flipped record of the last write looks like one that a crash cut off.
				if got := f.Store().View().Len(); got != n && !(got == n-1 && strings.HasSuffix(d.name, "at 0/40")) {
					t.Errorf("it starts with %d keys, %d were acknowledged", got, n)
				}
				return
			}
			refused++
			file := path
			if d.path == snapshot {
				file = filepath.Dir(path)
			}
			if !errors.Is(err, ErrDamaged) || !containsAll(err.Error(), file, "skiff snapshot restore") {
				t.Errorf("the error does not help: %v", err)
			}
			t.Log(err)
		})
	}
	if refused < 12 {
		t.Errorf("only %d of %d damages were found", refused, len(cases))
	}
}

// tryStart runs a member on dir until it is ready, and returns why it can't.
func tryStart(t *testing.T, c Config, dir string, f *fsm.FSM) error {
	c.DataDir, c.Listener, c.FSM = dir, listen(t, "127.0.0.1:0"), f
	n, err := New(c)
	if err != nil {
		c.Listener.Close()
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	select {
	case <-n.Ready():
		cancel()
		return <-done
	case err := <-done:
		return err
	}
}

func newestSnapshot(t *testing.T, dataDir string) string {
	t.Helper()
	s, err := raftdir.OpenSnapshots(dataDir, newHCLogger(testLogger(t)))
	if err != nil {
		t.Fatal(err)
	}
	return s.Files()[0]
}

// TestBackupOfAServer saves from a running member, restores, and starts on the
// result; also from Raft's own snapshot file, as the advice for damage says.
func TestBackupOfAServer(t *testing.T) {
	m := single(t, t.TempDir())
	m.awaitReady(t)
	for i := range 200 {
		m.put(t, fmt.Sprintf("/registry/things/t%03d", i), "x", 0)
	}
	m.put(t, "/skiff/pki/ca.key", "secret", 0)
	dir := t.TempDir()
	file := filepath.Join(dir, "snap")
	info, err := backup.Save(t.Context(), m.Snapshot, file, backup.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if info.TotalKeys != 201 || info.Revision != m.Stats().Revision || info.ClusterID != m.Stats().ClusterID {
		t.Errorf("saved %+v of %+v", info, m.Stats())
	}
	m.put(t, "/registry/things/later", "x", 0)
	last := m.Stats().Revision
	data := filepath.Join(dir, "data")
	r, err := backup.Restore(t.Context(), file, data, backup.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := start(t, Config{NodeID: r.NodeID, DataDir: data, ElectionWait: time.Second})
	n.awaitReady(t)
	if s := n.Stats(); s.Revision <= last || s.ClusterID != m.Stats().ClusterID || n.config.FSM.Store().View().Len() != 202 { // and the epoch
		t.Errorf("restored: %+v", s)
	}
	if s := n.Stats(); len(s.Voters) != 1 || s.Voters[0].ID != r.NodeID {
		t.Errorf("members after the restore: %+v", s.Voters)
	}
	eventually(t, "the address is corrected", func() bool { return n.Stats().Voters[0].Addr == n.c.AdvertiseAddr })
	if _, _, err := n.config.FSM.Store().Watch("/", last).Next(t.Context()); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a watcher from before the restore gets %v", err)
	}
	if res := n.put(t, "/registry/things/new", "x", 0); res.Err != nil || res.Revision <= last {
		t.Errorf("first write after the restore: %+v", res)
	}
	n = n.restart(t)
	n.awaitReady(t)
	if n.get("/registry/things/new") != "x" {
		t.Error("lost after a restart of the restored member")
	}

	c, keys := populated(t)
	data = filepath.Join(dir, "data2")
	if _, err = backup.Restore(t.Context(), newestSnapshot(t, c.DataDir), data, backup.RestoreOptions{NodeID: "a"}); err != nil {
		t.Fatal(err)
	}
	n = start(t, Config{NodeID: "a", DataDir: data})
	n.awaitReady(t)
	if got := n.config.FSM.Store().View().Len(); got == 0 || got > keys {
		t.Errorf("%d keys out of raft's snapshot of a store with %d", got, keys)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{
		NodeID: "a", DataDir: t.TempDir(), Listener: listen(t, "127.0.0.1:0"), AdvertiseAddr: "127.0.0.1:1",
		FSM: fsm.New(store.New(store.Config{})), Logger: testLogger(t), TLS: testTLS(),
	}
	defer good.Listener.Close()
	for name, spoil := range map[string]func(*Config){
		"NodeID":        func(c *Config) { c.NodeID = "" },
		"DataDir":       func(c *Config) { c.DataDir = "" },
		"Listener":      func(c *Config) { c.Listener = nil },
		"AdvertiseAddr": func(c *Config) { c.AdvertiseAddr = "0.0.0.0:6444" },
		"FSM":           func(c *Config) { c.FSM = nil },
		"Logger":        func(c *Config) { c.Logger = nil },
		"none given":    func(c *Config) { c.TLS = nil },
		"ClientAuth":    func(c *Config) { c.TLS = c.TLS.Clone(); c.TLS.ClientAuth = 0 },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s spoiled: %v", name, err)
		}
	}
	n, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
}
