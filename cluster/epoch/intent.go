package epoch

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// IntentFile is in the data directory while an Intent is not carried out.
const IntentFile = "epoch-intent.json"

// Intent is what a server does to its own files before it opens them: it was
// decided by the process before, or by a command. Once it is saved it will be
// carried out, whatever is killed when; until then nothing has begun.
type Intent struct {
	ID string `json:"id"` // random
	Do Deed   `json:"do"`
	// Epoch to join, or that begins.
	Epoch raftdir.Epoch `json:"epoch"`
	// NodeID, if not empty, is this server's from then on.
	NodeID string `json:"nodeID,omitempty"`
	// Servers to join.
	Servers []membership.Server `json:"servers,omitempty"`
	// Member is this server in the configuration of the new epoch.
	Member raftdir.Member `json:"member,omitzero"`
}

// Deed is what an Intent does.
type Deed string

// The deeds.
const (
	Rejoin Deed = "rejoin" // move the own log aside, join Servers
	Begin  Deed = "begin"  // a new epoch, with the own log and this member alone
)

// NewID is for an Intent or a server.
func NewID() string { return strings.ToLower(rand.Text()[:16]) }

// RejoinIntent joins the epoch of target. A server that is a voter there, which
// has forgotten what it voted for, gets a new ID.
func RejoinIntent(target View) Intent {
	i := Intent{ID: NewID(), Do: Rejoin, Epoch: target.Epoch, Servers: []membership.Server{target.Server}}
	if target.Voter {
		i.NodeID = NewID()
	}
	return i
}

// Save makes the intent last.
func (i Intent) Save(dataDir string) error {
	b, err := json.Marshal(i)
	if err == nil {
		err = durable.Replace(filepath.Join(dataDir, IntentFile), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("note what is to be done: %w", err)
	}
	return nil
}

// LoadIntent gives the one that is not carried out; nil if there is none.
func LoadIntent(dataDir string) (*Intent, error) {
	path := filepath.Join(dataDir, IntentFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	i := &Intent{}
	if err == nil {
		err = json.Unmarshal(b, i)
	}
	if err == nil && (i.ID == "" || i.Do != Rejoin && i.Do != Begin) {
		err = errors.New("it says nothing that this version can do")
	}
	if err != nil {
		return nil, fmt.Errorf("what was to be done (%s): %w; remove it to leave everything as it is", path, err)
	}
	return i, nil
}

// Resume carries out what a data directory's intent says, if there is one, and
// returns it. The caller holds the directory's lock and has nothing in it open.
// Whatever was done before it was killed is not done again.
func Resume(ctx context.Context, dataDir string) (*Intent, error) {
	if raftdir.Restoring(dataDir) {
		return nil, fmt.Errorf("a restore of a snapshot into %s was interrupted: run skiff snapshot restore again, with the same --data-dir", dataDir)
	}
	if err := raftdir.FinishRenewal(dataDir); err != nil {
		return nil, err
	}
	i, err := LoadIntent(dataDir)
	if err != nil || i == nil {
		return nil, err
	}
	for _, step := range i.steps(ctx, dataDir) {
		if err := step(); err != nil {
			return nil, fmt.Errorf("%s of this server in %s: %w; it is tried again at the next start, and given up if %s is removed", i.Do, i.Epoch, err, filepath.Join(dataDir, IntentFile))
		}
	}
	return i, nil
}

// steps can be repeated, from the first on.
func (i *Intent) steps(ctx context.Context, dataDir string) []func() error {
	done := func() error {
		if err := os.Remove(filepath.Join(dataDir, IntentFile)); err != nil {
			return err
		}
		return durable.SyncDir(dataDir)
	}
	if i.Do == Begin {
		return []func() error{func() error { return i.begin(ctx, dataDir) }, done}
	}
	return []func() error{
		func() error { return i.moveAside(dataDir) },
		func() error { return i.learn(dataDir) },
		func() error { return i.rename(dataDir) },
		done,
	}
}

func (i *Intent) begin(ctx context.Context, dataDir string) error {
	have, err := raftdir.LoadEpoch(dataDir)
	if err != nil {
		return err
	}
	if have.Same(i.Epoch) {
		return nil
	}
	_, err = backup.Fork(ctx, dataDir, backup.ForkOptions{Member: i.Member, Epoch: i.Epoch})
	return err
}

// markFile in the new Raft state names the intent that made it: the log that was
// moved aside may have been of the same epoch.
const markFile = "rejoined"

func (i *Intent) moveAside(dataDir string) error {
	b, err := os.ReadFile(filepath.Join(raftdir.Path(dataDir), markFile))
	if err == nil && string(b) == i.ID {
		return nil
	}
	_, err = raftdir.Renew(dataDir, func(dir string) error {
		if err := os.Mkdir(raftdir.Path(dir), 0o700); err != nil {
			return err
		}
		if err := durable.Create(filepath.Join(raftdir.Path(dir), markFile), []byte(i.ID), 0o600); err != nil {
			return err
		}
		return raftdir.SaveEpoch(dir, i.Epoch)
	})
	return err
}

func (i *Intent) rename(dataDir string) error {
	if i.NodeID == "" {
		return nil
	}
	return durable.Replace(filepath.Join(dataDir, "node-id"), []byte(i.NodeID+"\n"), 0o644)
}

// learn puts Servers into what this host knows of the cluster, and the new ID,
// by which the host knows its own name there.
func (i *Intent) learn(dataDir string) error {
	known, err := membership.LoadCluster(dataDir)
	if err != nil {
		return err
	}
	if known == nil {
		return fmt.Errorf("this host does not know the cluster: %s is missing; join it with --join and a new token", membership.ClusterFile)
	}
	if i.NodeID != "" {
		id, err := os.ReadFile(filepath.Join(dataDir, "node-id"))
		if err != nil {
			return err
		}
		for n, s := range known.Servers {
			if s.ID == strings.TrimSpace(string(id)) {
				known.Servers[n].ID = i.NodeID
			}
		}
	}
	for _, s := range i.Servers {
		known.Servers = append(slices.DeleteFunc(known.Servers, func(o membership.Server) bool { return o.ID == s.ID || o.Name == s.Name }), s)
	}
	known.Epoch = i.Epoch
	return membership.SaveCluster(dataDir, known)
}
