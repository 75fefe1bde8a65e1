package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// DefaultRevisionStep is by how much a restore moves the revision forward. The
// cluster may have gone on after the snapshot was taken; no revision that any
// client has seen since may be given out again for something else, so the step
// is larger than what any cluster writes in that time.
const DefaultRevisionStep = 1_000_000_000

const (
	// OwnPrefix is where skiff keeps what is its own.
	OwnPrefix = "/skiff/"
	// PKIPrefix is where versions that sealed nothing kept the cluster's keys,
	// which Restore also writes as files.
	PKIPrefix = OwnPrefix + "pki/"
	// sealedPrefix is where the keys of sealed values are.
	sealedPrefix = OwnPrefix + "keys/"
)

// upgradePrefix is where the state has a roll-out that is under way.
const upgradePrefix = OwnPrefix + "upgrade/"

// ended tells the keys of what does not go on in a new epoch: a roll-out would
// change programs of members that have moved on since.
func ended(key string) bool { return strings.HasPrefix(key, upgradePrefix) }

// ErrSealed says that a snapshot can't be restored without its cluster's key.
var ErrSealed = errors.New("its secrets are sealed with the cluster key")

// RestoreOptions for Restore.
type RestoreOptions struct {
	// NodeID of the one member that the restored cluster has; by default a new
	// one. It is written to DIR/node-id.
	NodeID string
	// AdvertiseAddr is the host:port of its Raft port. The default,
	// 127.0.0.1:6444, is corrected by the first start.
	AdvertiseAddr string
	// RevisionStep is added to the revision; 0 is DefaultRevisionStep.
	RevisionStep int64
	// Keys opens what is sealed: it gets everything below OwnPrefix and returns the
	// files for DIR/pki. Without it only a snapshot of which nothing is sealed can
	// be restored (ErrSealed).
	Keys func(state map[string][]byte) (files map[string][]byte, err error)
	// Files, if not nil, gives further files for DIR. It gets what Keys gets, and
	// what the snapshot says of itself.
	Files func(info *Info, state map[string][]byte) (files map[string][]byte, err error)
	// By names the host, in the epoch that the restore begins; by default as the
	// operating system does.
	By     string
	Unlock Unlock // opens an encrypted file
	// DryRun does everything up to the first write, and says what would be made:
	// the node id and the epoch of a real run are others.
	DryRun   bool
	Progress Progress
}

// Restored says what Restore has made.
type Restored struct {
	Snapshot *Info    `json:"snapshot"`
	DataDir  string   `json:"dataDir"`
	NodeID   string   `json:"nodeID"`
	Revision int64    `json:"revision"` // after the step
	PKIFiles []string `json:"pkiFiles"` // names below DataDir/pki
	// Epoch that begins with it.
	Epoch raftdir.Epoch `json:"epoch"`
}

// Restore makes a data dir from a snapshot: a server started on it is the only
// member of the same cluster, in a new epoch. dataDir must not exist, or hold
// nothing of a member (ErrExists). The snapshot is verified as a whole before
// anything is written. A dataDir that was not there appears when everything in it is
// on the disk; in one that was no server starts before that.
func Restore(ctx context.Context, path, dataDir string, o RestoreOptions) (_ *Restored, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore snapshot %s: %w", path, err)
		}
	}()
	if err := o.complete(); err != nil {
		return nil, err
	}
	into, err := freeFor(dataDir)
	if err != nil {
		return nil, err
	}
	f, err := Open(path, o.Unlock)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	own := map[string][]byte{}
	info, err := f.each(ctx, "verifying", o.Progress, func(kv *store.KeyValue) error {
		if strings.HasPrefix(kv.Key, OwnPrefix) {
			own[kv.Key] = kv.Value
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	pki, err := keyFiles(own, o.Keys)
	if err != nil {
		return nil, err
	}
	before, err := raftdir.DecodeEpoch(own[raftdir.EpochKey])
	if err != nil {
		return nil, err
	}
	var files map[string][]byte
	if o.Files != nil {
		if files, err = o.Files(info, own); err != nil {
			return nil, err
		}
	}
	if err := f.Rewind(); err != nil {
		return nil, err
	}

	out := &Restored{Snapshot: info, DataDir: dataDir, NodeID: o.NodeID, Revision: info.Revision + o.RevisionStep,
		Epoch: before.Next(raftdir.Restored, o.By, time.Now())}
	if out.Revision < info.Revision {
		return nil, fmt.Errorf("revision %d can't go %d further", info.Revision, o.RevisionStep)
	}
	parent := filepath.Dir(filepath.Clean(dataDir))
	if into {
		parent = filepath.Clean(dataDir)
	}
	if o.DryRun {
		out.PKIFiles = slices.Sorted(maps.Keys(pki))
		if err := canMake(parent, info); err != nil {
			return nil, err
		}
		return out, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	tmp, release, err := tempDir(parent, filepath.Base(dataDir))
	if err != nil {
		return nil, err
	}
	defer release() // there is nothing once it has been renamed
	member := raftdir.Member{ID: o.NodeID, Addr: o.AdvertiseAddr}
	err = raftdir.Create(tmp, member, info.Index, info.Term, func(w io.Writer) error {
		h := fsm.Header{ClusterID: info.ClusterID, Revision: out.Revision, Index: info.Index, Term: info.Term}
		return rewrite(ctx, f, f.Size, w, changes{hash: info.Hash, header: h, drop: ended, put: map[string][]byte{raftdir.EpochKey: out.Epoch.Encode()}}, f.progress(o.Progress))
	})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(raftdir.SaveEpoch(tmp, out.Epoch), raftdir.SetUnasked(tmp, true)); err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := durable.Create(filepath.Join(tmp, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	if out.PKIFiles, err = writePKI(tmp, pki); err != nil {
		return nil, err
	}
	if err := durable.Create(filepath.Join(tmp, "node-id"), []byte(o.NodeID+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := syncTree(tmp); err != nil {
		return nil, err
	}
	if into {
		if err := putInto(tmp, dataDir); err != nil {
			return nil, err
		}
		return out, nil
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dataDir, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("data dir %s %w; name one that does not", dataDir, ErrExists)
	case errors.Is(err, unix.EINVAL): // the file system can't; an empty directory might be replaced
		err = os.Rename(tmp, dataDir)
	}
	if err != nil {
		return nil, fmt.Errorf("put %s in place: %w", dataDir, err)
	}
	return out, durable.SyncDir(parent)
}

func (o *RestoreOptions) complete() error {
	if o.NodeID == "" {
		o.NodeID = strings.ToLower(rand.Text()[:16])
	}
	if strings.TrimSpace(o.NodeID) != o.NodeID {
		return fmt.Errorf("node id %q begins or ends with a space", o.NodeID)
	}
	if o.AdvertiseAddr == "" {
		o.AdvertiseAddr = "127.0.0.1:6444"
	}
	if o.By == "" {
		o.By, _ = os.Hostname() // it is for people
	}
	if o.RevisionStep == 0 {
		o.RevisionStep = DefaultRevisionStep
	}
	if o.RevisionStep < 0 {
		return fmt.Errorf("revision step %d would go back", o.RevisionStep)
	}
	return nil
}

// keyFiles are the files for DIR/pki.
func keyFiles(own map[string][]byte, open func(map[string][]byte) (map[string][]byte, error)) (files map[string][]byte, err error) {
	files = map[string][]byte{}
	sealed := false
	for key, value := range own {
		sealed = sealed || strings.HasPrefix(key, sealedPrefix)
		if name, ok := strings.CutPrefix(key, PKIPrefix); ok {
			files[name] = value
		}
	}
	switch {
	case open != nil:
		if files, err = open(own); err != nil {
			return nil, err
		}
	case sealed:
		return nil, ErrSealed
	}
	for name := range files {
		if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
			return nil, fmt.Errorf("key %q is no name for a file", PKIPrefix+name)
		}
	}
	return files, nil
}

func writePKI(dataDir string, files map[string][]byte) (names []string, err error) {
	dir := filepath.Join(dataDir, "pki")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := durable.Create(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// syncTree makes the names in a directory and those below it last. The files in
// it have been synced.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(path)
	})
}
