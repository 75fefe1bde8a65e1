package shimproto

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const recordSuffix = ".json"

// WriteRecord keeps a container's status in a sandbox's directory. A reader
// sees the old or the new one, never half of it.
func WriteRecord(dir string, st *ContainerStatus) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, RecordsName, st.ID+recordSuffix), b)
}

// WriteFile replaces a file at once.
func WriteFile(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// RemoveRecord forgets a container.
func RemoveRecord(dir, id string) error {
	err := os.Remove(filepath.Join(dir, RecordsName, id+recordSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ReadRecords returns every container's recorded status. Unreadable records
// are reported in the error beside those that could be read.
func ReadRecords(dir string) ([]ContainerStatus, error) {
	ents, err := os.ReadDir(filepath.Join(dir, RecordsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []ContainerStatus
	var errs []error
	for _, e := range ents {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, RecordsName, e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var st ContainerStatus
		if err := json.Unmarshal(b, &st); err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", e.Name(), err))
			continue
		}
		out = append(out, st)
	}
	return out, errors.Join(errs...)
}
