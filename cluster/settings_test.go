package cluster

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// What a server cannot save, as on a full disk, ends neither its start nor it.
func TestNothingCanBeSaved(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	startServer(t, c).stop()
	kubeconfig := filepath.Join(c.DataDir, "admin.kubeconfig")
	if err := os.Remove(kubeconfig); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(kubeconfig, "x"), filepath.Join(c.DataDir, "cluster.json.new")} { // in the way
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("it does not start: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("it does not start")
	}
	v := s.Settings()
	v.PodEvictionTimeout = 7 * time.Second
	if err := s.putSettings(ctx, v, fsm.Any); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "it takes the settings over", func() bool { return s.Settings() == v })
	select {
	case err := <-ended:
		ended <- nil
		t.Errorf("it ended with %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}
