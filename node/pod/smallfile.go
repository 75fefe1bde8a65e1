package pod

import (
	"errors"
	"os"
	"path/filepath"
)

// replaceFile writes a small file as a whole: whoever reads it sees the old or
// the new one, also after a kill. Without safe it may be lost in a power
// failure.
func replaceFile(dir, name string, b []byte, safe bool) error {
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has its name
	if _, err = f.Write(b); err == nil && safe {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}
