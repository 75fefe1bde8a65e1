package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// Source writes a snapshot. The method Snapshot of consensus.Node is one.
type Source func(ctx context.Context, w io.Writer) error

// FromReader is a Source that copies r, such as the body of an HTTP response.
func FromReader(r io.Reader) Source {
	return func(ctx context.Context, w io.Writer) error {
		stop := context.AfterFunc(ctx, func() {
			if c, ok := r.(io.Closer); ok {
				c.Close()
			}
		})
		defer stop()
		_, err := io.Copy(w, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
}

// SaveOptions for Save.
type SaveOptions struct {
	Overwrite bool            // replace a file that exists
	Compress  bool            // with zstd
	Encrypt   []age.Recipient // with age, to these; a passphrase only alone
	Progress  Progress
}

// Save writes a snapshot from source to path, with mode 0600. It is written
// beside, verified, and put in place only then: whatever goes wrong, path is not
// touched. An existing file is refused with ErrExists unless Overwrite is set.
func Save(ctx context.Context, source Source, path string, o SaveOptions) (_ *Info, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save snapshot to %s: %w", path, err)
		}
	}()
	if st, err := os.Lstat(path); err == nil {
		switch {
		case st.IsDir():
			return nil, errors.New("it is a directory")
		case !o.Overwrite:
			return nil, ErrExists
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, name := filepath.Split(path)
	return saveBeside(ctx, source, dir, name, o, func(*Info) string { return path })
}

// SaveIn is Save to a new file in dir, named after what is in it (Name).
func SaveIn(ctx context.Context, source Source, dir string, o SaveOptions) (path string, _ *Info, err error) {
	began := time.Now()
	info, err := saveBeside(ctx, source, dir, "skiff", o, func(i *Info) string {
		path = filepath.Join(dir, Name{Cluster: i.ClusterID, At: began, Revision: i.Revision, Compressed: i.Compressed, Encrypted: i.Encrypted}.String())
		return path
	})
	if err != nil {
		return "", nil, fmt.Errorf("save snapshot in %s: %w", dir, err)
	}
	return path, info, nil
}

// saveBeside writes to a file beside name, which becomes what final says.
func saveBeside(ctx context.Context, source Source, dir, name string, o SaveOptions, final func(*Info) string) (*Info, error) {
	tmp, err := tempFile(dir, name)
	if err != nil {
		return nil, err
	}
	defer tmp.Close()           // unlocks it
	defer os.Remove(tmp.Name()) // fails once it has been renamed

	unlock, err := write(ctx, source, newSteady(tmp), o)
	if err != nil {
		return nil, err
	}
	if err := tmp.Sync(); err != nil {
		return nil, err
	}
	f, err := Open(tmp.Name(), unlock)
	if err != nil {
		return nil, fmt.Errorf("read what was written: %w", err)
	}
	defer f.Close()
	info, err := f.each(ctx, "verifying", o.Progress, nil)
	if err != nil {
		return nil, fmt.Errorf("what was received is no whole snapshot: %w", err)
	}
	if err := place(tmp.Name(), final(info), o.Overwrite); err != nil {
		return nil, err
	}
	return info, nil
}

// write gives what reads it back.
func write(ctx context.Context, source Source, w io.Writer, o SaveOptions) (Unlock, error) {
	to, key := keep(o.Encrypt)
	out, err := wrap(w, o.Compress, to)
	if err != nil {
		return nil, err
	}
	if err := source(ctx, &progressWriter{w: out, progress: o.Progress}); err != nil {
		out.Close() // what a compressor holds; the error is told already
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	if len(to) == 0 {
		return nil, nil
	}
	return Unlock{age.NewInjectedFileKeyIdentity(*key)}, nil
}

// place gives a file its final name. Without overwrite a file that has come into
// being meanwhile is left alone.
func place(tmp, path string, overwrite bool) error {
	if overwrite {
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	} else if err := os.Link(tmp, path); err != nil {
		if errors.Is(err, os.ErrExist) {
			return ErrExists
		}
		// Some file systems have no hard links.
		if _, serr := os.Lstat(path); serr == nil {
			return ErrExists
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	return durable.SyncDir(filepath.Dir(path))
}

type progressWriter struct {
	w        io.Writer
	n        int64
	progress Progress
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += int64(n)
	p.progress.tell("saving", p.n, 0)
	return n, err
}
