package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/fsm/durable"
)

func snapshotSaveCommand() *cli.Command {
	flags := etcdctlFlags(clientFlags(append(append(encryptFlags(), s3Flags()...),
		&cli.BoolFlag{Name: "force", Usage: "replace FILE if it exists", EnvVars: env("force")},
		&cli.BoolFlag{Name: "without-quorum", Usage: "save what the server that answers has, though nobody can say whether that is all", EnvVars: env("without-quorum")},
		writeOutFlag())...))
	return &cli.Command{
		Name: "save", Usage: "save the state of a running cluster to FILE", ArgsUsage: "[FILE]",
		Description: "FILE holds everything. It may be a folder; it, or the present one without FILE, gets a new file\n" +
			"that is named after the cluster, the time and the revision. Secrets and keys in it are sealed: a\n" +
			"restore needs the cluster key as well, a copy of DATA-DIR/pki/cluster.key of any server. Keep the\n" +
			"two apart. All else can be read by whoever has the file, unless it is encrypted.\n\n" +
			"s3://BUCKET/PREFIX/FILE is an object in a bucket, and s3://BUCKET/PREFIX/ one that is named as above.\n" +
			"It is verified while it is sent.\n\n" +
			"Any server will do. The variables ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY\n" +
			"stand for the flags of those names.",
		Flags:  flags,
		Action: saveSnapshot,
	}
}

// etcdctlFlags adds what users of etcdctl have in their environment, and names
// what is refused.
func etcdctlFlags(flags []cli.Flag) []cli.Flag {
	for _, f := range flags {
		s, ok := f.(*cli.StringFlag)
		if !ok {
			continue
		}
		switch s.Name {
		case "endpoints":
			s.EnvVars = append(s.EnvVars, "ETCDCTL_ENDPOINTS")
		case "cacert":
			s.EnvVars = append(s.EnvVars, "ETCDCTL_CACERT")
		case "cert":
			s.EnvVars = append(s.EnvVars, "ETCDCTL_CERT")
		case "key":
			s.EnvVars = append(s.EnvVars, "ETCDCTL_KEY")
		}
	}
	return append(flags,
		&cli.BoolFlag{Name: "insecure-skip-tls-verify", Usage: "refused: skiff does not take a snapshot from a server that it can't verify", Hidden: true, EnvVars: []string{"ETCDCTL_INSECURE_SKIP_TLS_VERIFY"}},
		&cli.BoolFlag{Name: "insecure-transport", Usage: "refused: servers speak TLS only", Value: false, Hidden: true})
}

// sourceLost says that a server stopped in the middle; another may do better.
type sourceLost struct{ err error }

func (e *sourceLost) Error() string { return "the server stopped sending: " + e.err.Error() }
func (e *sourceLost) Unwrap() error { return e.err }

// saveTries is how often a save begins when servers stop in the middle.
const saveTries = 3

func saveSnapshot(c *cli.Context) error {
	args, err := argsAndFlags(c)
	if err != nil {
		return err
	}
	if len(args) > 1 {
		return usagef("name one file, or none: skiff snapshot save [FILE]")
	}
	if c.Bool("insecure-skip-tls-verify") || c.Bool("insecure-transport") {
		return usagef("skiff does not take a snapshot from a server that it can't verify: name the CA with --cacert (DATA-DIR/pki/ca.crt of any server)")
	}
	if err := checkWriteOut(c); err != nil {
		return err
	}
	path := "."
	if len(args) == 1 {
		path = args[0]
	}
	giveWay() // the server may be on this host
	to, err := recipients(c)
	if err != nil {
		return err
	}
	var info *backup.Info
	for try := 1; ; try++ {
		path, info, err = saveOnce(c, path, to)
		var lost *sourceLost
		if err == nil || try == saveTries || !errors.As(err, &lost) || c.Context.Err() != nil {
			break
		}
		fmt.Fprintf(os.Stderr, "skiff: %v; trying again\n", lost)
	}
	switch {
	case errors.Is(err, backup.ErrExists):
		return fmt.Errorf("%w: choose another name or use --force", err)
	case err != nil && c.Context.Err() != nil:
		return fmt.Errorf("interrupted: %w; nothing was saved", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "Snapshot saved at", path)
	return printSnapshot(c, path, info)
}

func saveOnce(c *cli.Context, path string, to []age.Recipient) (string, *backup.Info, error) {
	b := newBar("save")
	defer b.done()
	o := backup.SaveOptions{Overwrite: c.Bool("force"), Compress: c.Bool("compress"), Encrypt: to, Progress: b.snapshot}
	if isS3(path) {
		return saveS3(c, path, o)
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		done, info, err := backup.SaveIn(c.Context, download(c), path, o)
		if err != nil {
			return path, nil, err
		}
		return done, info, nil
	}
	info, err := backup.Save(c.Context, download(c), path, o)
	return path, info, err
}

// download is a snapshot from a server that works.
func download(c *cli.Context) backup.Source {
	return func(ctx context.Context, w io.Writer) error {
		path := cluster.SnapshotPath
		if c.Bool("without-quorum") {
			path += "?" + cluster.SnapshotLocal + "=true"
		}
		resp, err := getSkiff(c, path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		r := &bodyReader{r: resp.Body}
		err = backup.FromReader(r)(ctx, w)
		if err != nil && r.err != nil && ctx.Err() == nil {
			return &sourceLost{r.err}
		}
		return err
	}
}

// bodyReader tells an error of the server from one of this host.
type bodyReader struct {
	r   io.ReadCloser
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *bodyReader) Close() error { return b.r.Close() }

func snapshotKeygenCommand() *cli.Command {
	return &cli.Command{
		Name: "keygen", Usage: "make an age key for encrypted snapshots", ArgsUsage: "FILE",
		Description: "FILE is made with mode 0600 and must not exist. The public part, for --encrypt-to, is printed; the\n" +
			"key itself is needed to read what is encrypted to it, and is best kept where the servers are not.",
		Action: func(c *cli.Context) error {
			path, err := oneFile(c)
			if err != nil {
				return err
			}
			key, err := age.GenerateX25519Identity()
			if err != nil {
				return err
			}
			text := fmt.Sprintf("# public key: %s\n%s\n", key.Recipient(), key)
			if err := durable.Create(path, []byte(text), 0o600); err != nil {
				if errors.Is(err, os.ErrExist) {
					return fmt.Errorf("%s %w: a key is never overwritten", path, backup.ErrExists)
				}
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, key.Recipient())
			return err
		},
	}
}
