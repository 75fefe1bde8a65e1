package dev

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Config of a new cluster.
type Config struct {
	// Dir holds the cluster: state, disk images, logs, kubeconfig. It must be
	// empty or missing.
	Dir string
	// Binary is the skiff that each node gets as its own program.
	Binary                     string
	Servers, Agents, Witnesses int
	ServerArgs, AgentArgs      []string                         // further flags of skiff server (witnesses too) and skiff agent
	ImageDir                   string                           // archives that every node loads; may be empty
	DiskSize                   int64                            // of each node's disk in bytes; the file is sparse
	PlainDisks                 bool                             // data directories are folders on this machine's disk: they cannot be stalled or filled alone
	Subnet                     netip.Prefix                     // /24 of the nodes; not valid means a free one of 10.190.0.0/16
	Progress                   func(format string, args ...any) // may be nil
}

// DefaultDiskSize of a node: room for the volumes of 10 GiB that upstream's
// tests ask for.
const DefaultDiskSize = 12 << 30

// minDiskSize is what ext4, the binaries that skiff unpacks and an empty store
// need.
const minDiskSize = 64 << 20

func (c *Config) check() error {
	switch {
	case os.Geteuid() != 0:
		return errors.New("namespaces and disks need root: try sudo")
	case c.Dir == "":
		return errors.New("no folder for the cluster")
	case c.Servers < 1:
		return fmt.Errorf("%d servers: a cluster has at least one", c.Servers)
	case c.Agents < 0 || c.Witnesses < 0:
		return errors.New("the number of agents and witnesses cannot be negative")
	case c.Servers+c.Agents+c.Witnesses > maxNodes:
		return fmt.Errorf("%d nodes: at most %d fit into the range", c.Servers+c.Agents+c.Witnesses, maxNodes)
	case c.DiskSize != 0 && c.DiskSize < minDiskSize:
		return fmt.Errorf("a disk of %d bytes is too small: at least %d MiB", c.DiskSize, minDiskSize>>20)
	case c.Subnet.IsValid() && (!c.Subnet.Addr().Is4() || c.Subnet.Bits() != prefixBits):
		return fmt.Errorf("subnet %s: want an IPv4 range of /%d", c.Subnet, prefixBits)
	}
	if st, err := os.Stat(c.Binary); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is no program: %v", c.Binary, err)
	}
	if c.ImageDir != "" {
		if st, err := os.Stat(c.ImageDir); err != nil {
			return fmt.Errorf("image folder: %w", err)
		} else if !st.IsDir() {
			return fmt.Errorf("image folder %s is no folder", c.ImageDir)
		}
	}
	if c.PlainDisks {
		return nil
	}
	return checkDisks()
}

// Cluster is a cluster on this machine. Its methods may be called concurrently,
// and by several processes.
type Cluster struct {
	p        place
	progress func(format string, args ...any)
}

// Open finds the cluster that Up made in dir, or gives ErrNotUp.
func Open(dir string) (*Cluster, error) {
	p, err := placeOf(dir)
	if err != nil {
		return nil, err
	}
	if _, err := p.load(); err != nil {
		return nil, err
	}
	return &Cluster{p, func(string, ...any) {}}, nil
}

// Dir is the cluster's folder, absolute.
func (c *Cluster) Dir() string { return c.p.dir }

// change runs fn while no other command changes the cluster, and saves what it
// changed even if it failed.
func (c *Cluster) change(ctx context.Context, fn func(*state) error) error {
	unlock, err := c.p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := c.p.load()
	if err != nil {
		return err
	}
	err = fn(s)
	return errors.Join(err, c.p.save(s))
}

func (s *state) node(name string) (nodeState, error) {
	var names []string
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return nodeState{}, fmt.Errorf("there is no node %q; nodes are %v", name, names)
}

// Up makes a cluster and returns when every node is Ready. If it fails, or ctx
// ends, what was made is left for Down, and for a look at the logs.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string, ...any) {}
	}
	if cfg.DiskSize == 0 {
		cfg.DiskSize = DefaultDiskSize
	}
	var err error
	if cfg.Binary, err = filepath.Abs(cfg.Binary); err != nil {
		return nil, err
	}
	if cfg.ImageDir != "" {
		if cfg.ImageDir, err = filepath.Abs(cfg.ImageDir); err != nil {
			return nil, err
		}
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p, err := placeOf(cfg.Dir)
	if err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := p.newState(cfg)
	if err != nil {
		return nil, err
	}
	c := &Cluster{p, cfg.Progress}
	err = c.up(ctx, s, cfg)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return c, err
}

func (p place) newState(cfg Config) (*state, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			return nil, fmt.Errorf("a cluster is up in %s; see skiff dev status, or remove it with skiff dev down", p.dir)
		}
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s holds something else (%s): choose a new folder with --data-dir", p.dir, entries[0].Name())
	}
	// A cluster whose folder was deleted may still run.
	if err := p.removeKernelObjects(); err != nil {
		return nil, err
	}
	s := &state{Binary: cfg.Binary, Subnet: cfg.Subnet.Masked(), ServerArgs: cfg.ServerArgs, AgentArgs: cfg.AgentArgs, ImageDir: cfg.ImageDir, PlainDisks: cfg.PlainDisks}
	if !s.Subnet.IsValid() {
		if s.Subnet, err = p.chooseSubnet(); err != nil {
			return nil, err
		}
	} else if used, err := usedRanges(); err != nil {
		return nil, err
	} else if err := free(s.Subnet, used); err != nil {
		return nil, err
	}
	for _, group := range []struct {
		role Role
		n    int
	}{{Server, cfg.Servers}, {Witness, cfg.Witnesses}, {Agent, cfg.Agents}} {
		for i := range group.n {
			index := len(s.Nodes) + 1
			s.Nodes = append(s.Nodes, nodeState{Name: fmt.Sprintf("%s-%d", group.role, i+1), Role: group.role, Index: index, Addr: hostAddr(s.Subnet, firstHost+index)})
		}
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, err
	}
	return s, p.save(s)
}
