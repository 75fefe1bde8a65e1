package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// The files that restores name are in <data-dir>/raft/restore, by their hash. A
// member pulls one from another, piece by piece. It keeps the file for as long as
// its log holds the entry that names it, since a member that lags may ask for it,
// and at least for keepFiles.
const (
	partSuffix   = ".part"   // not all of it is there
	uploadPrefix = "upload-" // not from another member, see FileToSpread
)

const (
	filePiece   = 1 << 20
	keepFiles   = time.Hour
	keepLoaded  = 5 * time.Minute // of a file that is not restored after all
	fileTimeout = 30 * time.Second
)

// files are those of this member.
type files struct {
	n   *Node
	dir string

	mu    sync.Mutex
	pulls map[string]*pull // by hash, until their end was told
}

// pull is a file on its way here.
type pull struct {
	mu   sync.Mutex
	have int64
	over bool
	err  error
}

// filePlace is a file and a member that has it.
type filePlace struct {
	File   string `json:"file"`
	Size   int64  `json:"size,omitempty"`
	From   string `json:"from,omitempty"`
	Offset int64  `json:"offset,omitempty"`
}

// fileState is how far a member is with a file.
type fileState struct {
	Have  int64  `json:"have"`
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
}

// open makes the directory and removes what a crash left unfinished.
func (f *files) open(n *Node) error {
	f.n, f.dir, f.pulls = n, filepath.Dir(raftdir.RestoredFile(n.c.DataDir, "x")), map[string]*pull{}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of restores: %w", err)
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("read directory of restores: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), partSuffix) || strings.HasPrefix(e.Name(), uploadPrefix) {
			if err := os.Remove(filepath.Join(f.dir, e.Name())); err != nil {
				return fmt.Errorf("remove unfinished file of a restore: %w", err)
			}
		}
	}
	return nil
}

func (f *files) path(file string) string { return raftdir.RestoredFile(f.n.c.DataDir, file) }

func (f *files) has(file string, size int64) bool {
	st, err := os.Stat(f.path(file))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// get is another member's wish for a piece; an empty one is the end.
func (f *files) get(_ context.Context, _ string, body []byte) ([]byte, error) {
	var q filePlace
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	src, err := os.Open(f.path(q.File))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	b := make([]byte, filePiece)
	n, err := src.ReadAt(b, q.Offset)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// answerPull begins to pull a file, if this member does not have it and is not at
// it, and says how far it is.
func (f *files) answerPull(_ context.Context, from string, body []byte) ([]byte, error) {
	var q filePlace
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	return json.Marshal(f.begin(q))
}

func (f *files) begin(q filePlace) fileState {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pulls[q.File]
	if p == nil {
		p = &pull{}
		f.pulls[q.File] = p
		f.n.behind.Go(func() {
			ctx, cancel := f.n.untilStopped(context.Background())
			defer cancel()
			err := f.prepare(ctx, q, p)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.over, p.err = true, err
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := fileState{Have: p.have, Ready: p.over && p.err == nil}
	if p.over {
		delete(f.pulls, q.File) // whoever asks again wants it again
	}
	if p.err != nil {
		s.Error = p.err.Error()
	}
	return s
}

// prepare gets a file and reads it, so that restoring it takes no time.
func (f *files) prepare(ctx context.Context, q filePlace, p *pull) error {
	if now := time.Now(); f.has(q.File, q.Size) {
		if err := os.Chtimes(f.path(q.File), now, now); err != nil { // see tidy
			return err
		}
	} else {
		if err := f.fetch(ctx, q, func(have int64) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.have = have
		}); err != nil {
			return err
		}
	}
	if err := f.preload(q.File); err != nil {
		_ = os.Remove(f.path(q.File))
		return err
	}
	p.mu.Lock()
	p.have = q.Size
	p.mu.Unlock()
	return nil
}

func (f *files) preload(file string) error {
	src, err := os.Open(f.path(file))
	if err != nil {
		return err
	}
	defer src.Close()
	s, err := f.n.c.FSM.Preload(src)
	if err == nil && s.Hash != file {
		f.n.c.FSM.Forget(s.Hash)
		err = fmt.Errorf("%w: it holds %s", ErrDamaged, s.Hash)
	}
	if err != nil {
		return fmt.Errorf("file %s of a restore: %w", f.path(file), err)
	}
	time.AfterFunc(keepLoaded, func() { f.n.c.FSM.Forget(file) })
	return nil
}

// fetch pulls a file from the member that is said to have it. What was pulled is
// verified by who reads it.
func (f *files) fetch(ctx context.Context, q filePlace, tell func(have int64)) (err error) {
	part := f.path(q.File) + partSuffix
	dst, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		dst.Close()
		if err != nil {
			os.Remove(part)
		}
	}()
	room, err := backup.Room(f.dir, dst)
	if err != nil {
		return err
	}
	for at := int64(0); ; {
		b, err := f.piece(ctx, q, at)
		if err != nil {
			return fmt.Errorf("get the file of a restore from %s: %w", q.From, err)
		}
		if len(b) == 0 {
			if at != q.Size {
				return fmt.Errorf("get the file of a restore from %s: it has %d bytes, want %d", q.From, at, q.Size)
			}
			break
		}
		if _, err := room.Write(b); err != nil {
			return err
		}
		at += int64(len(b))
		tell(at)
	}
	if err := errors.Join(dst.Sync(), dst.Close()); err != nil {
		return err
	}
	if f.n.c.Step != nil {
		f.n.c.Step("restore-file:before")
	}
	if err := os.Rename(part, f.path(q.File)); err != nil {
		return err
	}
	return durable.SyncDir(f.dir)
}

// piece asks for one, again for a while if the other does not answer.
func (f *files) piece(ctx context.Context, q filePlace, at int64) ([]byte, error) {
	body, err := json.Marshal(filePlace{File: q.File, Offset: at})
	if err != nil {
		return nil, err
	}
	for until := time.Now().Add(fileTimeout); ; {
		b, err := f.n.Call(ctx, q.From, methodFileGet, body)
		if err == nil || ctx.Err() != nil || time.Now().After(until) ||
			!errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnknownOutcome) {
			return b, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// source is the state machine's FileSource. It asks all members, again and again,
// until one has the file or this one stops.
func (f *files) source(file string, size int64, wrong error) (io.ReadCloser, error) {
	ctx, cancel := f.n.untilStopped(context.Background())
	defer cancel()
	if wrong != nil {
		f.n.c.Logger.Warn("the file of a restore is not as it was written; it is fetched anew", "file", f.path(file), "error", wrong)
		_ = os.Remove(f.path(file))
	}
	said := time.Time{}
	for ctx.Err() == nil {
		if f.has(file, size) {
			src, err := os.Open(f.path(file))
			if err == nil {
				return src, nil
			}
		}
		err := errors.New("there is no other server")
		for _, m := range f.n.Members() {
			if m.ID == f.n.c.NodeID {
				continue
			}
			if err = f.fetch(ctx, filePlace{File: file, Size: size, From: m.ID}, func(int64) {}); err == nil {
				break
			}
		}
		if err != nil && time.Since(said) > fileTimeout && ctx.Err() == nil {
			said = time.Now()
			f.n.c.Logger.Error("the log restores a file that this server does not have, and no other gives it; nothing is applied until one does. If all others have gone on: stop this server, move its raft directory and node-id aside, and start it with --join",
				"file", f.path(file), "bytes", size, "error", err)
		}
		if err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	return nil, ErrStopped
}

// drop removes a file that will not be restored.
func (f *files) drop(_ context.Context, _ string, body []byte) ([]byte, error) {
	var q filePlace
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	f.n.c.FSM.Forget(q.File)
	named, err := f.named()
	if err != nil || named[filepath.Base(q.File)] {
		return nil, err
	}
	if err = os.Remove(f.path(q.File)); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return nil, err
}

// named are the files that the log names.
func (f *files) named() (map[string]bool, error) {
	first, err := f.n.log.FirstIndex()
	if err != nil || first == 0 {
		return nil, err
	}
	last, err := f.n.log.LastIndex()
	out := map[string]bool{}
	for i := first; i <= last && err == nil; i++ {
		var e raft.Log
		if err = f.n.log.GetLog(i, &e); errors.Is(err, raft.ErrLogNotFound) {
			err = nil // a gap, or cut off meanwhile
			continue
		}
		if r := fsm.RestoreIn(e.Data); err == nil && e.Type == raft.LogCommand && r != nil {
			out[r.File] = true
		}
	}
	return out, err
}

// sweep removes files that nobody needs any more, now and then.
func (f *files) sweep() {
	t := time.NewTicker(keepFiles)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f.tidy(keepFiles)
		case <-f.n.stopped:
			return
		}
	}
}

// tidy removes files that are older and that the log does not name.
func (f *files) tidy(older time.Duration) {
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) == 0 {
		return
	}
	named, err := f.named()
	if err != nil {
		return
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || time.Since(st.ModTime()) < older || named[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(f.dir, e.Name())); err == nil {
			f.n.c.Logger.Info("removed the file of a restore, which nobody needs any more", "file", e.Name())
		}
	}
}

// FileToSpread makes the file of a restore: write gives a snapshot, which is
// verified. When it returns, the file is on this member's disk.
func (n *Node) FileToSpread(ctx context.Context, write func(io.Writer) error) (info *backup.Info, err error) {
	path, err := n.Upload(write)
	if err != nil {
		return nil, err
	}
	defer os.Remove(path) // there is none if all goes well
	if info, err = backup.Verify(ctx, path, nil, nil); err != nil {
		return nil, err
	}
	if err := os.Rename(path, n.files.path(info.Hash)); err != nil {
		return nil, err
	}
	return info, durable.SyncDir(n.files.dir)
}

// Upload puts what write gives into a file on the disk of the log. The caller
// removes it; the next start does, too.
func (n *Node) Upload(write func(io.Writer) error) (path string, err error) {
	f, err := os.CreateTemp(n.files.dir, uploadPrefix+"*")
	if err != nil {
		return "", err
	}
	room, err := backup.Room(n.files.dir, f)
	if err == nil {
		err = write(room)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// FilePath is where a file of FileToSpread is.
func (n *Node) FilePath(file string) string { return n.files.path(file) }

// FSM is the state machine.
func (n *Node) FSM() *fsm.FSM { return n.c.FSM }
