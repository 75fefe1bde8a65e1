package runtime

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// checkPropagation makes sure that a mount can tell containers of later mounts,
// as its propagation asks for: where the host keeps its mounts private it cannot,
// and nobody would notice before something is missing.
func checkPropagation(m Mount) error {
	if m.Propagation == PropagationPrivate {
		return nil
	}
	path, err := filepath.EvalSymlinks(m.HostPath)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", m.Destination, err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return fmt.Errorf("mount at %s: read mounts: %w", m.Destination, err)
	}
	var at *mountinfo.Info
	for _, i := range infos { // the last of the longest is the one in sight
		if at == nil || len(i.Mountpoint) >= len(at.Mountpoint) {
			at = i
		}
	}
	if at == nil {
		return fmt.Errorf("mount at %s: no mount found that holds %s", m.Destination, path)
	}
	want := "shared"
	ok := strings.Contains(at.Optional, "shared:")
	if m.Propagation == PropagationHostToContainer {
		want = "shared or slave"
		ok = ok || strings.Contains(at.Optional, "master:")
	}
	if !ok {
		return fmt.Errorf("mount at %s: path %q is mounted on %q but it is not a %s mount; on the host, mount --make-rshared %s makes it one",
			m.Destination, path, at.Mountpoint, want, at.Mountpoint)
	}
	return nil
}
