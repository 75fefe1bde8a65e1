package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ClusterFile is the name of the file in the data directory that keeps the
// Cluster over restarts.
const ClusterFile = "cluster.json"

// LoadCluster reads the file in the data directory; without one it gives nil.
func LoadCluster(dataDir string) (*Cluster, error) {
	path := filepath.Join(dataDir, ClusterFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what is known of the cluster: %w", err)
	}
	c, err := decodeJSON[Cluster](b)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove it and start with --join and a new token", path, err)
	}
	return c, nil
}

// SaveCluster writes the file, all or nothing.
func SaveCluster(dataDir string, c *Cluster) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", ClusterFile, err)
	}
	return replaceFile(filepath.Join(dataDir, ClusterFile), append(b, '\n'))
}

// replaceFile makes path hold b, mode 0600, or leaves it as it was.
func replaceFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
