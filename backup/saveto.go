package backup

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// headerSize is more than the first bytes of a snapshot up to its first key.
const headerSize = 4096

// SaveTo saves to a place, under name or, if that is empty, one that tells what
// it is (see Name). In a folder it is what Save does. Elsewhere nothing is kept
// on this host: the snapshot is verified while it is sent.
func SaveTo(ctx context.Context, source Source, p Place, name string, o SaveOptions) (*Info, Named, error) {
	if d, ok := p.(Dir); ok {
		return saveDir(ctx, source, d, name, o)
	}
	info, n, err := send(ctx, source, p, name, o)
	if err != nil {
		return nil, Named{}, fmt.Errorf("save snapshot to %s: %w", p, err)
	}
	return info, n, nil
}

func saveDir(ctx context.Context, source Source, d Dir, name string, o SaveOptions) (*Info, Named, error) {
	path, info, err := "", (*Info)(nil), error(nil)
	if name == "" {
		path, info, err = SaveIn(ctx, source, string(d), o)
		name = filepath.Base(path)
	} else if path, err = d.path(name); err == nil {
		info, err = Save(ctx, source, path, o)
	}
	if err != nil {
		return nil, Named{}, err
	}
	n, _ := ParseName(name)
	return info, Named{Entry{Name: name, Size: info.TotalSize, Modified: time.Now()}, n}, nil
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
