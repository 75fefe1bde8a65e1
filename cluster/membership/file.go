package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skiff-sh/skiff/fsm/durable"
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
	return durable.Replace(filepath.Join(dataDir, ClusterFile), append(b, '\n'), 0o600)
}
