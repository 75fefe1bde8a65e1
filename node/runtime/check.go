package runtime

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Check reports why no sandbox could be made now. It looks and writes nothing: the
// shim can be executed, and the state and data directories can be written to, which
// a file system that the kernel has made read-only after an error cannot.
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
	return nil
}
