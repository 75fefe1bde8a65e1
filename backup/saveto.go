package backup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// headerSize is more than the first bytes of a snapshot up to its first key.
const headerSize = 4096

// SaveTo saves to a place, under name or, if that is empty, one that tells what
// it is (see Name). In a folder it is what Save does. Elsewhere nothing is kept
// on this host: the snapshot is verified while it is sent.
func SaveTo(ctx context.Context, source Source, p Place, name string, o SaveOptions) (*Info, Named, error) {
	if d, ok := p.(Dir); ok {
		return saveDir(ctx, source, d, name, fmt.Sprint(os.Getpid()), o)
	}
	info, n, err := send(ctx, source, p, name, o)
	if err != nil {
		return nil, Named{}, fmt.Errorf("save snapshot to %s: %w", p, err)
	}
	return info, n, nil
}

// partial is what the file of a save of owner in a folder is called before its
// revision is known; Save puts something before and after it.
func partial(owner string) string { return ".skiff-partial-" + owner }

// sweepPartial removes what saves of owner left behind when they were killed.
func sweepPartial(d Dir, owner string) error {
	var errs []error
	for _, pattern := range []string{partial(owner), "." + partial(owner) + ".tmp-*"} {
		left, _ := filepath.Glob(filepath.Join(string(d), pattern))
		for _, path := range left {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// saveDir saves to a folder. Only one save of an owner may run at a time.
func saveDir(ctx context.Context, source Source, d Dir, name, owner string, o SaveOptions) (*Info, Named, error) {
	at := time.Now().UTC().Truncate(time.Second)
	path := filepath.Join(string(d), name)
	if name == "" {
		path = filepath.Join(string(d), partial(owner))
		defer os.Remove(path) // there is nothing once it has its name
	}
	info, err := Save(ctx, source, path, o)
	if err != nil {
		return nil, Named{}, err
	}
	n := Name{Cluster: ShortID(info.ClusterID), At: at, Revision: info.Revision, Compressed: o.Compress, Encrypted: len(o.Encrypt) > 0}
	if name == "" {
		name = n.String()
		final := filepath.Join(string(d), name)
		if err := os.Rename(path, final); err != nil {
			return nil, Named{}, fmt.Errorf("save snapshot: %w", err)
		}
		if err := durable.SyncDir(string(d)); err != nil {
			return nil, Named{}, fmt.Errorf("save snapshot to %s: %w", final, err)
		}
	}
	return info, Named{Entry{Name: name, Size: info.TotalSize, Modified: at}, n}, nil
}

// send streams a snapshot to a place.
func send(ctx context.Context, source Source, p Place, name string, o SaveOptions) (*Info, Named, error) {
	ctx, cancel := context.WithCancel(ctx)
	plain, in := io.Pipe()
	produced := make(chan struct{})
	go func() {
		defer close(produced)
		in.CloseWithError(source(ctx, &progressWriter{w: in, progress: o.Progress}))
	}()
	defer func() {
		cancel()
		plain.CloseWithError(context.Canceled)
		<-produced
	}()

	n := Name{At: time.Now().UTC().Truncate(time.Second), Compressed: o.Compress, Encrypted: len(o.Encrypt) > 0}
	buf := bufio.NewReaderSize(plain, headerSize)
	start, err := buf.Peek(headerSize)
	if err != nil && err != io.EOF {
		return nil, Named{}, err
	}
	header, err := fsm.NewReader(bytes.NewReader(start))
	if err != nil {
		return nil, Named{}, fmt.Errorf("what was received is no snapshot: %w", err)
	}
	n.Cluster, n.Revision = ShortID(header.Header().ClusterID), header.Header().Revision
	if name == "" {
		name = n.String()
	}

	content, out := io.Pipe()
	var info *Info
	encoded := make(chan struct{})
	size := &counter{w: out}
	go func() {
		defer close(encoded)
		var err error
		info, err = encode(ctx, buf, size, o)
		out.CloseWithError(err)
	}()
	err = p.Create(ctx, name, content)
	content.CloseWithError(err)
	<-encoded
	if err != nil {
		return nil, Named{}, err
	}
	info.TotalSize, info.Compressed, info.Encrypted = size.n, o.Compress, len(o.Encrypt) > 0
	return info, Named{Entry{Name: name, Size: size.n, Modified: n.At}, n}, nil
}

// encode copies a snapshot as it is to be stored, and verifies it on the way.
func encode(ctx context.Context, src io.Reader, dst io.Writer, o SaveOptions) (*Info, error) {
	w, err := wrap(dst, o.Compress, o.Encrypt)
	if err != nil {
		return nil, err
	}
	info, err := read(ctx, io.TeeReader(src, w), func() {}, nil)
	if err != nil {
		w.Close() // what a compressor holds
		if Refused(err) {
			err = fmt.Errorf("what was received is no whole snapshot: %w", err)
		}
		return nil, err
	}
	return info, w.Close()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
