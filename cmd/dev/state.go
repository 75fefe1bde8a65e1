package dev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Role of a node.
type Role string

// The roles.
const (
	Server  Role = "server"
	Witness Role = "witness"
	Agent   Role = "agent"
)

// state is what <dir>/dev.json holds.
type state struct {
	Binary     string       `json:"binary"` // see program for what a node runs
	Subnet     netip.Prefix `json:"subnet"`
	ServerArgs []string     `json:"serverArgs,omitempty"`
	AgentArgs  []string     `json:"agentArgs,omitempty"`
	ImageDir   string       `json:"imageDir,omitempty"`
	PlainDisks bool         `json:"plainDisks,omitempty"`
	Formed     bool         `json:"formed"` // the first server has made the cluster; from then on servers only join
	Nodes      []nodeState  `json:"nodes"`
	Cuts       []Cut        `json:"cuts,omitempty"`
}

type nodeState struct {
	Name  string     `json:"name"`
	Role  Role       `json:"role"`
	Index int        `json:"index"` // from 1; decides address and link
	Addr  netip.Addr `json:"address"`
}

// runsPods says whether the node is a Node of the API.
func (s *state) runsPods(n nodeState) bool {
	switch n.Role {
	case Witness:
		return false
	case Server:
		return !slices.ContainsFunc(s.ServerArgs, func(arg string) bool {
			return arg == "--disable-agent" || arg == "--disable-agent=true"
		})
	}
	return true
}

// Cut is a direction in which nothing passes.
type Cut struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// ErrNotUp means that the folder holds no cluster.
var ErrNotUp = errors.New("no cluster is up here")

const (
	stateFile = "dev.json"
	runDir    = "/run/skiff-dev"
	cgroupDir = "skiff-dev"
)

// place is where the parts of one cluster are; all names follow from its
// folder.
type place struct {
	dir string // absolute
	id  string // 8 hexadecimal digits
}

func placeOf(dir string) (place, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return place{}, err
	}
	// The same folder by another way is the same cluster.
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	} else if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	sum := sha256.Sum256([]byte(abs))
	return place{dir: abs, id: hex.EncodeToString(sum[:4])}, nil
}

func (p place) file(name string) string           { return filepath.Join(p.dir, name) }
func (p place) nodeFile(node, name string) string { return filepath.Join(p.dir, "nodes", node, name) }
func (p place) pins() string                      { return filepath.Join(runDir, p.id) }
func (p place) pin(node, namespace string) string { return filepath.Join(p.pins(), node, namespace) }
func (p place) uplink() string                    { return "skd" + p.id }
func (p place) cgroup(node string) string         { return filepath.Join(cgroupDir, p.id, node) }
func (p place) table() string                     { return "skiff-dev-" + p.id }
func port(index int) string                       { return fmt.Sprintf("n%d", index) }

func (p place) load() (*state, error) {
	b, err := os.ReadFile(p.file(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s); start one with skiff dev up", ErrNotUp, p.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove the cluster with skiff dev down", p.file(stateFile), err)
	}
	return &s, nil
}

func (p place) save(s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(p.file(stateFile), b)
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte) error {
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lock makes commands on one cluster wait for each other. Its file lies beside
// the pins, so that removing the cluster's folder does not remove it; the one
// who has the lock removes it.
func (p place) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(runDir, p.id+".lock")
	for deadline := time.Now().Add(2 * time.Minute); ; {
		f, err := p.tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if f != nil {
			return func() { os.Remove(path); f.Close() }, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another skiff dev command is working on %s", p.dir)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tryLock gives nil when somebody else has the lock, or just had it.
func (p place) tryLock(path string) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return f, nil
		}
	}
	f.Close()
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, err
	}
	return nil, nil
}
