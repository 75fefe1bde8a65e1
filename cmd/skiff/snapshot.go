package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
)

func snapshotCommand() *cli.Command {
	format := &cli.StringFlag{Name: "write-out", Aliases: []string{"w"}, Usage: "table, json or simple", Value: "table", EnvVars: env("write-out")}
	return &cli.Command{
		Name:  "snapshot",
		Usage: "save, check and restore the state of the cluster",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "save the state of a running cluster to FILE", ArgsUsage: "FILE",
				Description: "FILE holds everything. Secrets and keys in it are sealed: a restore needs the cluster key as well,\n" +
					"a copy of DATA-DIR/pki/cluster.key of any server. Keep the two apart.",
				Flags:  clientFlags(&cli.BoolFlag{Name: "force", Usage: "replace FILE if it exists", EnvVars: env("force")}, format),
				Action: saveSnapshot,
			},
			{
				Name: "status", Usage: "verify FILE and show what is in it", ArgsUsage: "FILE",
				Flags: []cli.Flag{format},
				Action: func(c *cli.Context) error {
					path, err := oneFile(c)
					if err != nil {
						return err
					}
					info, err := backup.Status(path)
					if err != nil {
						return err
					}
					return printSnapshot(c, info)
				},
			},
			{
				Name: "verify", Usage: "verify every byte of FILE", ArgsUsage: "FILE",
				Action: func(c *cli.Context) error {
					path, err := oneFile(c)
					if err != nil {
						return err
					}
					b := newBar("verify")
					info, err := backup.Verify(c.Context, path, nil, b.snapshot)
					b.done()
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "%s is whole: revision %d, %d keys, sha256 %s\n", path, info.Revision, info.TotalKeys, info.Hash)
					return err
				},
			},
			{
				Name: "restore", Usage: "make a data directory from FILE", ArgsUsage: "FILE",
				Description: "The directory must not exist. A server started on it is the single member of the same cluster.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "data-dir", Usage: "directory to make", EnvVars: env("data-dir")},
					&cli.StringFlag{Name: "key-file", Usage: "copy of pki/cluster.key of a server of the cluster", EnvVars: env("key-file")},
					&cli.StringFlag{Name: "passphrase-file", Usage: "file with the passphrase of the cluster key; without --key-file the snapshot's own copy of it is used", EnvVars: env("passphrase-file")},
					outputFlag(),
				},
				Action: restoreSnapshot,
			},
		},
	}
}

// oneFile is the command's only argument.
func oneFile(c *cli.Context) (string, error) {
	if c.NArg() != 1 {
		return "", usagef("name one file: skiff snapshot %s FILE (flags come before it)", c.Command.Name)
	}
	return c.Args().First(), nil
}

func saveSnapshot(c *cli.Context) error {
	path, err := oneFile(c)
	if err != nil {
		return err
	}
	b := newBar("save")
	source := func(ctx context.Context, w io.Writer) error {
		resp, err := getSkiff(c, cluster.SnapshotPath)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return backup.FromReader(resp.Body)(ctx, w)
	}
	info, err := backup.Save(c.Context, source, path, backup.SaveOptions{Overwrite: c.Bool("force"), Progress: b.snapshot})
	b.done()
	if errors.Is(err, backup.ErrExists) {
		return fmt.Errorf("%w: choose another name or use --force", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "snapshot saved to", path)
	return printSnapshot(c, info)
}

func restoreSnapshot(c *cli.Context) error {
	path, err := oneFile(c)
	if err != nil {
		return err
	}
	if c.String("data-dir") == "" {
		return usagef("name the directory to make with --data-dir")
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	keys, err := restoreKeys(c.String("key-file"), c.String("passphrase-file"))
	if err != nil {
		return err
	}
	b := newBar("restore")
	done, err := backup.Restore(c.Context, path, c.String("data-dir"), backup.RestoreOptions{Keys: keys, Progress: b.snapshot})
	b.done()
	if err != nil {
		return explainRestore(err)
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(done)
	}
	_, err = fmt.Fprintf(c.App.Writer, "restored revision %d with %d keys to %s; start it with: skiff server --data-dir %s\n",
		done.Snapshot.Revision, done.Snapshot.TotalKeys, done.DataDir, done.DataDir)
	return err
}

func (b *bar) snapshot(s backup.Step) { b.set(s.Bytes, s.Of) }

// printSnapshot prints what etcdutl prints, in the same forms.
func printSnapshot(c *cli.Context, i *backup.Info) error {
	cells := []string{i.Hash[:8], fmt.Sprint(i.Revision), fmt.Sprint(i.TotalKeys), bytesText(i.TotalSize), i.Version}
	switch f := c.String("write-out"); f {
	case "json":
		return json.NewEncoder(c.App.Writer).Encode(i)
	case "simple":
		_, err := fmt.Fprintln(c.App.Writer, strings.Join(cells, ", "))
		return err
	case "table":
		w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "HASH\tREVISION\tTOTAL KEYS\tTOTAL SIZE\tVERSION")
		fmt.Fprintln(w, strings.Join(cells, "\t"))
		return w.Flush()
	default:
		return usagef("--write-out is %q, want table, json or simple", f)
	}
}
