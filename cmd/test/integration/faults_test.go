//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullDisk: with no room for the log, writes are refused and say why, reads
// and pods go on, and writes work again by themselves once there is room.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s, err := newServer("skiff-full", 4, filepath.Join(disk, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's last words:\n%s", s.log.tail(40))
		}
		if err := s.remove(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "create", "deployment", "hello", "--image=skiff.local/hello:v1")
	s.kubectl(t, "rollout", "status", "deployment/hello", "--timeout=240s")
	s.kubectl(t, "create", "configmap", "acknowledged", "--from-literal=a=b")

	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	n := 0
	eventually(t, 30*time.Second, func() error {
		n++
		fill(t, ballast)
		_, err := s.try("", "create", "configmap", fmt.Sprintf("refused-%d", n), "--from-literal=a="+strings.Repeat("x", 100_000))
		if err == nil {
			return fmt.Errorf("write %d went through on a full disk", n)
		}
		if strings.Contains(err.Error(), "space") {
			return nil
		}
		return fmt.Errorf("the refusal does not say why: %w", err)
	})
	if got := s.kubectl(t, "get", "configmap", "acknowledged", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("read on a full disk gave %q", got)
	}
	pod := s.kubectl(t, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
	eventually(t, 10*time.Second, func() error { return wants(s.kubectl(t, "logs", pod), "listens") })
	select {
	case <-s.Exited():
		t.Fatal("the server ended")
	default:
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		_, err := s.try("", "create", "configmap", "again", "--from-literal=a=b")
		if err != nil && strings.Contains(err.Error(), "already exists") { // by a try of which it was unknown
			return nil
		}
		return err
	})
}

// fill takes all the room that is left on the file's disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		b := make([]byte, size)
		for {
			if _, err := f.Write(b); err != nil {
				break
			}
		}
	}
}

// TestDamagedLog: a server does not start on a log it cannot trust; it names
// the file and the command that recovers, and that command works.
func TestDamagedLog(t *testing.T) {
	s := ownServer(t, "skiff-damage", 5)
	s.kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	file := filepath.Join(t.TempDir(), "good.snapshot")
	ctx := context.Background()
	if _, err := s.Skiff(ctx, "snapshot", "save", "--data-dir", s.DataDir, file); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	logFile := filepath.Join(s.DataDir, "raft", "raft.db")
	b, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) / 4; i < len(b); i += 512 {
		b[i] ^= 0x55
	}
	if err := os.WriteFile(logFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Exited():
	case <-time.After(2 * time.Minute):
		t.Fatal("the server runs on a damaged log")
	}
	last := s.log.tail(3)
	for _, part := range []string{"raft.db", "skiff snapshot restore"} {
		if err := wants(last, part); err != nil {
			t.Error(err)
		}
	}
	// As the message says: restore into a new directory and start on it.
	key := keepClusterKey(t, s.DataDir)
	if err := os.Rename(s.DataDir, s.DataDir+".damaged"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Skiff(ctx, "snapshot", "restore", "--data-dir", s.DataDir, "--key-file", key, file); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if got := s.kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("after the restore: %q", got)
	}
}

// keepClusterKey copies what a restore needs beside the snapshot.
func keepClusterKey(t *testing.T, dataDir string) (path string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dataDir, "pki", "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "cluster.key")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
