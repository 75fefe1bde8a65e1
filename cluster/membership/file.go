package membership

import (
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

// ErrClusterFile says that the file is not as it was written.
var ErrClusterFile = errors.New("what is known of the cluster is damaged")

// LoadCluster reads the file in the data directory; without one it gives nil.
func LoadCluster(dataDir string) (*Cluster, error) {
	path := filepath.Join(dataDir, ClusterFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w; move it away and start skiff server or skiff agent with --join and a new token", ErrClusterFile, err)
	}
	c := new(Cluster)
	if err := durable.Open(b, c); err != nil {
		return nil, fmt.Errorf("%w: %s: %w; remove it and start skiff server or skiff agent with --join and a new token", ErrClusterFile, path, err)
	}
	return c, nil
}

// SaveCluster writes the file, all or nothing.
func SaveCluster(dataDir string, c *Cluster) error {
	b, err := durable.Seal(c)
	if err != nil {
		return fmt.Errorf("encode %s: %w", ClusterFile, err)
	}
	return durable.Replace(filepath.Join(dataDir, ClusterFile), b, 0o600)
}
