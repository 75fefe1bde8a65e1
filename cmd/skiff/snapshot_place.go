package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

// openFile splits s3://BUCKET/PREFIX/FILE into its place and its name.
func openFile(c *cli.Context, arg string) (backup.Place, string, error) {
	name := path.Base(arg)
	if bucket, key, err := backup.ParseS3(arg); err != nil {
		return nil, "", usagef("%v", err)
	} else if key == "" {
		return nil, "", usagef("%s names no file: want s3://%s/PREFIX/FILE", arg, bucket)
	}
	p, err := openS3(c, "snapshot", strings.TrimSuffix(arg, "/"+name))
	if err != nil {
		return nil, "", err
	}
	return p, name, nil
}

// fetch gives the path of a snapshot file. One in a bucket is copied to a folder
// of its own below TMPDIR, which done removes.
func fetch(c *cli.Context, arg string) (path string, done func(), err error) {
	done = func() {}
	if !isS3(arg) {
		return arg, done, nil
	}
	p, name, err := openFile(c, arg)
	if err != nil {
		return "", done, err
	}
	r, e, err := p.Open(c.Context, name)
	if err != nil {
		return "", done, err
	}
	defer r.Close()
	dir, err := os.MkdirTemp("", "skiff-snapshot-")
	if err != nil {
		return "", done, err
	}
	remove := func() { os.RemoveAll(dir) }
	b := newBar("fetch")
	defer b.done()
	path = filepath.Join(dir, name)
	if err := copyTo(path, r, e.Size, b); err != nil {
		remove()
		return "", done, fmt.Errorf("fetch %s to %s (TMPDIR): %w", arg, os.TempDir(), err)
	}
	return path, remove, nil
}

func copyTo(path string, r io.Reader, size int64, b *bar) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(f, &fetching{r: r, b: b, of: size})
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came of %d", n, size)
	}
	if err == nil {
		err = f.Close()
	}
	return err
}

// fetching shows how far a copy is.
type fetching struct {
	r     io.Reader
	b     *bar
	n, of int64
}

func (f *fetching) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	f.n += int64(n)
	f.b.set(f.n, f.of)
	return n, err
}

// onePlace is the command's argument, a folder or s3://BUCKET/PREFIX; by default
// the present folder.
func onePlace(c *cli.Context) (backup.Place, error) {
	args, err := argsAndFlags(c)
	if err != nil {
		return nil, err
	}
	dir := "."
	switch len(args) {
	case 0:
	case 1:
		dir = args[0]
	default:
		return nil, usagef("name one folder: skiff snapshot %s [DIR]", c.Command.Name)
	}
	if isS3(dir) {
		return openS3(c, "snapshot", dir)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, usagef("%s is no folder; for one file there is skiff snapshot status", dir)
	}
	return backup.Dir(dir), nil
}

// saveS3 saves to a file in a bucket, or under a name of its own where the
// argument ends with a slash or is the bucket. Nothing is kept on this host.
func saveS3(c *cli.Context, arg string, o backup.SaveOptions) (string, *backup.Info, error) {
	if o.Overwrite {
		return arg, nil, usagef("--force does not work with %s: choose another name", arg)
	}
	_, key, err := backup.ParseS3(arg)
	if err != nil {
		return arg, nil, usagef("%v", err)
	}
	var p backup.Place
	name := ""
	if key == "" || strings.HasSuffix(arg, "/") {
		p, err = openS3(c, "snapshot", arg)
	} else {
		p, name, err = openFile(c, arg)
	}
	if err != nil {
		return arg, nil, err
	}
	info, n, err := backup.SaveTo(c.Context, download(c), p, name, o)
	if errors.Is(err, backup.ErrExists) { // --force would not help
		return arg, nil, fmt.Errorf("%v: choose another name", err)
	}
	if err != nil {
		return arg, nil, err
	}
	return p.String() + "/" + n.Entry.Name, info, nil
}
