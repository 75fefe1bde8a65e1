package volume

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestLinksThatAreSwappedMeanwhile has a container exchange a directory and a
// link that leads out, as fast as it can, under everything that walks into a
// volume: none of it may ever arrive outside.
func TestLinksThatAreSwappedMeanwhile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change owners")
	}
	root := t.TempDir()
	vol, out := filepath.Join(root, "vol"), filepath.Join(root, "out")
	if err := errors.Join(os.MkdirAll(vol+"/a/sub", 0o755), os.MkdirAll(out+"/sub", 0o755), os.WriteFile(out+"/f", []byte("secret"), 0o600),
		os.WriteFile(vol+"/a/f", []byte("mine"), 0o600), os.Symlink(out, vol+"/b")); err != nil {
		t.Fatal(err)
	}
	outside := inode(t, out+"/sub")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// "a" is a directory and a link by turns.
			_ = os.Rename(vol+"/a", vol+"/c")
			_ = os.Rename(vol+"/b", vol+"/a")
			_ = os.Rename(vol+"/a", vol+"/b")
			_ = os.Rename(vol+"/c", vol+"/a")
		}
	}()
	inside, refused := 0, 0
	// On one processor the other goroutine may not come for thousands of rounds.
	for i, end := 0, time.Now().Add(time.Minute); i < 3000 || (inside == 0 || refused == 0) && time.Now().Before(end); i++ {
		fd, err := openBeneath(vol, "a/sub")
		if err == nil {
			f := os.NewFile(uintptr(fd), "sub")
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if info.Sys().(*syscall.Stat_t).Ino == outside {
				t.Fatal("a subpath was opened outside of the volume")
			}
			f.Close()
			inside++
		} else {
			refused++
		}
		if b, err := ReadFile(vol, "a/f", 100); err == nil && string(b) != "mine" {
			t.Fatalf("a file outside was read: %q", b)
		}
		if err := setOwnership(t.Context(), vol, 4242, nil); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	for _, p := range []string{out, out + "/sub", out + "/f"} {
		if info, err := os.Lstat(p); err != nil || groupOf(info) != 0 {
			t.Errorf("%s was given to another group", p)
		}
	}
	t.Logf("%d times inside, %d times refused", inside, refused)
	if inside == 0 || refused == 0 {
		t.Error("the link was never met, or always: nothing was tried")
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}
