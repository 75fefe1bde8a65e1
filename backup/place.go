package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/fsm/durable"
)

// Place keeps snapshot files: a folder (Dir), or a prefix of a bucket (S3). It
// knows nothing of what is in them.
type Place interface {
	// String is the place as an operator writes it.
	String() string
	// List gives the files directly in the place, sorted by name. A place that does
	// not exist is an error.
	List(ctx context.Context) ([]Entry, error)
	// Open reads a file; fs.ErrNotExist says that there is none.
	Open(ctx context.Context, name string) (io.ReadCloser, Entry, error)
	// Create stores content under name, whole and as it was read, or not at all;
	// ErrExists says that there is such a file. An error of content is returned.
	Create(ctx context.Context, name string, content io.Reader) error
	// Remove takes a file away; one that is not there is no error.
	Remove(ctx context.Context, name string) error
}

// Entry is a file in a Place.
type Entry struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// Dir is a folder on this host. It is not made by any method.
type Dir string

func (d Dir) String() string { return string(d) }

// List implements Place. What is no regular file is left out, and so is what
// begins with a dot, which may be half-written.
func (d Dir) List(context.Context) ([]Entry, error) {
	files, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []Entry
	for _, f := range files {
		if !f.Type().IsRegular() || f.Name()[0] == '.' {
			continue
		}
		st, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		out = append(out, Entry{Name: f.Name(), Size: st.Size(), Modified: st.ModTime()})
	}
	return out, nil
}

// Open implements Place.
func (d Dir) Open(_ context.Context, name string) (io.ReadCloser, Entry, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, Entry{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, Entry{}, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, Entry{}, err
	}
	return f, Entry{Name: name, Size: st.Size(), Modified: st.ModTime()}, nil
}

// Create implements Place.
func (d Dir) Create(ctx context.Context, name string, content io.Reader) (err error) {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	tmp, err := tempFile(string(d), name)
	if err != nil {
		return err
	}
	defer tmp.Close()           // unlocks it
	defer os.Remove(tmp.Name()) // fails once it has been renamed
	if _, err := io.Copy(tmp, ctxReader{ctx, content}); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	return place(tmp.Name(), path, false)
}

// Remove implements Place.
func (d Dir) Remove(_ context.Context, name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(string(d))
}

// Free is how many bytes this process may still write there.
func (d Dir) Free() (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(string(d), &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", d, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

func (d Dir) path(name string) (string, error) {
	if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return "", fmt.Errorf("%q is no name of a file", name)
	}
	return filepath.Join(string(d), name), nil
}

// ctxReader ends when ctx does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// VerifyIn is Verify of a file in a place. Elsewhere than in a folder it is read
// as it comes.
func VerifyIn(ctx context.Context, p Place, name string, unlock Unlock, progress Progress) (*Info, error) {
	return lookIn(ctx, p, name, unlock, progress, true)
}

// PeekIn is Peek of a file in a place.
func PeekIn(ctx context.Context, p Place, name string, unlock Unlock) (*Info, error) {
	return lookIn(ctx, p, name, unlock, nil, false)
}

func lookIn(ctx context.Context, p Place, name string, unlock Unlock, progress Progress, whole bool) (info *Info, err error) {
	if d, ok := p.(Dir); ok {
		path, err := d.path(name)
		switch {
		case err != nil:
			return nil, err
		case whole:
			return Verify(ctx, path, unlock, progress)
		}
		return Peek(path, unlock)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("verify snapshot %s/%s: %w", p, name, err)
		}
	}()
	r, e, err := p.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m := &medium{r: r}
	plain, encrypted, compressed, err := unwrap(m, unlock)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	if whole {
		info, err = read(ctx, plain, func() { progress.tell("verifying", m.n.Load(), e.Size) }, nil)
	} else {
		info, err = peek(plain)
	}
	if err != nil {
		return nil, err
	}
	info.TotalSize, info.Compressed, info.Encrypted = e.Size, compressed, encrypted
	return info, nil
}
