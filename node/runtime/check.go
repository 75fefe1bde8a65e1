package runtime

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check reports why no sandbox could be made now: the shim can be executed, and the
// state and data directories can be written to, which a file system that the kernel
// has made read-only after an error cannot. It writes nothing but the one empty file
// that it opens.
func (r *Runtime) Check() error {
	for _, c := range []struct {
		path string
		mode uint32
		what string
	}{
		{r.shim, unix.X_OK, "the shim cannot be executed"},
		{r.root(), unix.W_OK | unix.X_OK, "the state directory cannot be written to"},
		{r.cfg.DataDir, unix.W_OK | unix.X_OK, "the data directory cannot be written to"},
	} {
		if err := unix.Access(c.path, c.mode); err != nil {
			return fmt.Errorf("%s: %s: %w", c.what, c.path, err)
		}
	}
	// An ext4 in its emergency state lets access(2) pass.
	f, err := os.OpenFile(filepath.Join(r.cfg.DataDir, probeFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("the data directory cannot be written to: %w", err)
	}
	return f.Close()
}

// probeFile is opened for writing and stays empty.
const probeFile = ".writable"
