package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"filippo.io/age"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Info describes a snapshot that has been verified.
type Info struct {
	Hash      string `json:"hash"` // SHA-256, in hex
	Revision  int64  `json:"revision"`
	TotalKeys uint64 `json:"totalKey"`  // named as etcdutl names them
	TotalSize int64  `json:"totalSize"` // of the file
	Version   string `json:"version"`   // of the format
	ClusterID string `json:"clusterID"`
	Index     uint64 `json:"raftIndex"`
	Term      uint64 `json:"raftTerm"`
	DataSize  uint64 `json:"dataSize"` // of keys and values
	// FeatureLevel and Epoch of the cluster, see package fsm and fsm/raftdir.
	FeatureLevel int    `json:"featureLevel"`
	Epoch        uint64 `json:"epoch"`

	Compressed bool `json:"compressed,omitempty"`
	Encrypted  bool `json:"encrypted,omitempty"`
}

// Status reads and verifies the whole snapshot and says what is in it. unlock
// opens an encrypted one.
func Status(path string, unlock ...age.Identity) (*Info, error) {
	return Verify(context.Background(), path, unlock, nil)
}

// Verify is Status with a way to end it and to follow it. A file that is not as
// it was written is refused with the reason: fsm.ErrNotSnapshot,
// fsm.ErrSnapshotVersion, fsm.ErrTruncated or fsm.ErrDamaged.
func Verify(ctx context.Context, path string, unlock Unlock, progress Progress) (*Info, error) {
	f, err := Open(path, unlock)
	if err != nil {
		return nil, fmt.Errorf("verify snapshot %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.each(ctx, "verifying", progress, nil)
	if err != nil {
		return nil, fmt.Errorf("verify snapshot %s: %w", path, err)
	}
	return info, nil
}

// Peek reads only the first bytes: of the Info it gives what the header says.
// What follows may be damaged.
func Peek(path string, unlock Unlock) (*Info, error) {
	f, err := Open(path, unlock)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	defer f.Close()
	info, err := peek(f)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	info.TotalSize, info.Compressed, info.Encrypted = f.Size, f.Compressed, f.Encrypted
	return info, nil
}

func peek(plain io.Reader) (*Info, error) {
	r, err := fsm.NewReader(plain)
	if err != nil {
		return nil, err
	}
	h := r.Header()
	return &Info{Revision: h.Revision, ClusterID: h.ClusterID, Index: h.Index, Term: h.Term, Version: fmt.Sprint(h.Format)}, nil
}

// each reads the file to its end and gives each key to do (if not nil).
func (f *File) each(ctx context.Context, what string, progress Progress, do func(*store.KeyValue) error) (*Info, error) {
	info, err := read(ctx, f, func() { progress.tell(what, f.Offset(), f.Size) }, do)
	if err != nil {
		return nil, err
	}
	info.TotalSize, info.Compressed, info.Encrypted = f.Size, f.Compressed, f.Encrypted
	return info, nil
}

// read reads a snapshot to its end, gives each key to each (if not nil), and
// returns what the snapshot says about itself once all of it is verified.
func read(ctx context.Context, src io.Reader, tell func(), each func(*store.KeyValue) error) (*Info, error) {
	r, err := fsm.NewReader(src)
	if err != nil {
		return nil, err
	}
	own := map[string][]byte{}
	for last := int64(0); ; {
		kv, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil && (kv.Key == fsm.LevelKey || kv.Key == raftdir.EpochKey) {
			own[kv.Key] = kv.Value
		}
		if err == nil && each != nil {
			err = each(kv)
		}
		if err != nil {
			return nil, err
		}
		if r.Offset() != last { // a block further
			last = r.Offset()
			tell()
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
	}
	tell()
	return infoOf(r.Summary(), own)
}

// infoOf makes an Info of the end of a snapshot, and of keys in it.
func infoOf(s *fsm.Summary, own map[string][]byte) (*Info, error) {
	epoch, err := raftdir.DecodeEpoch(own[raftdir.EpochKey])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrDamaged, err)
	}
	level := fsm.MinLevel
	if b, ok := own[fsm.LevelKey]; ok { // the reader has looked at it
		if level, err = strconv.Atoi(string(b)); err != nil {
			return nil, fmt.Errorf("%w: feature level: %w", fsm.ErrDamaged, err)
		}
	}
	return &Info{
		Hash: s.Hash, Revision: s.Revision, TotalKeys: s.Keys, TotalSize: s.Size,
		Version: fmt.Sprint(s.Version), ClusterID: s.ClusterID, Index: s.Index, Term: s.Term,
		DataSize: s.Bytes, FeatureLevel: level, Epoch: epoch.Number,
	}, nil
}

// Refused says whether err is about what is in a file, not about reading it.
func Refused(err error) bool {
	return errors.Is(err, fsm.ErrNotSnapshot) || errors.Is(err, fsm.ErrSnapshotVersion) ||
		errors.Is(err, fsm.ErrTruncated) || errors.Is(err, fsm.ErrDamaged)
}
