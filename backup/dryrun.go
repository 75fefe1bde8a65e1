package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// restoreRoom is what a data dir takes beside the state: the log, and what is set
// aside for a full disk.
const restoreRoom = 64 << 20

// canMake says why a data dir for a snapshot can't be made in parent.
func canMake(parent string, info *Info) error {
	for {
		st, err := os.Stat(parent)
		if errors.Is(err, os.ErrNotExist) && parent != filepath.Dir(parent) {
			parent = filepath.Dir(parent)
			continue
		}
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fmt.Errorf("%s is no directory", parent)
		}
		break
	}
	if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%s can't be written to: %w", parent, err)
	}
	free, _, err := Dir(parent).Free()
	if need := int64(info.DataSize) + restoreRoom; err == nil && free < need {
		err = fmt.Errorf("%d MiB are free in %s, and %d MiB are needed: %w", free>>20, parent, need>>20, unix.ENOSPC)
	}
	return err
}
