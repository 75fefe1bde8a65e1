package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

func snapshotRestoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "make a data directory from FILE", ArgsUsage: "FILE",
		Description: "The directory must not exist. A server started on it is the single member of the same cluster, in a\n" +
			"new epoch: the other hosts find it and join it by themselves.",
		Flags: unlockFlags(sealFlags(
			&cli.StringFlag{Name: "data-dir", Usage: "directory to make", EnvVars: env("data-dir")},
			&cli.BoolFlag{Name: "dry-run", Usage: "verify all and say what would be made", EnvVars: env("dry-run")},
			outputFlag())...),
		Action: restoreSnapshot,
	}
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
	open, err := unlock(c)
	if err != nil {
		return err
	}
	keys, err := restoreKeys(c.String("key-file"), c.String("passphrase-file"))
	if err != nil {
		return err
	}
	files, err := restoreFiles(c.String("key-file"), c.String("passphrase-file"))
	if err != nil {
		return err
	}
	path, remove, err := fetch(c, path)
	if err != nil {
		return err
	}
	defer remove()
	unlockDir, err := lockExisting(c.String("data-dir"))
	if err != nil {
		return err
	}
	defer unlockDir()
	b := newBar("restore")
	done, err := backup.Restore(c.Context, path, c.String("data-dir"),
		backup.RestoreOptions{Keys: keys, Files: files, Unlock: open, DryRun: c.Bool("dry-run"), Progress: b.snapshot})
	b.done()
	if err != nil {
		return explainSnapshot(explainRestore(err))
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(done)
	}
	if c.Bool("dry-run") {
		return printPlanned(c, done)
	}
	_, err = fmt.Fprintf(c.App.Writer, "restored revision %d with %d keys to %s, as epoch %d of the cluster; start it with: skiff server --data-dir %s (servers that are left, and agents, rejoin by themselves)\n",
		done.Snapshot.Revision, done.Snapshot.TotalKeys, done.DataDir, done.Epoch.Number, done.DataDir)
	return err
}

// printPlanned shows what a restore would make.
func printPlanned(c *cli.Context, r *backup.Restored) error {
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintf(w, "would restore revision %d with %d keys to %s:\n", r.Snapshot.Revision, r.Snapshot.TotalKeys, r.DataDir)
	fmt.Fprintf(w, "Cluster\t%s, epoch %d, feature level %d\n", r.Snapshot.ClusterID, r.Epoch.Number, r.Snapshot.FeatureLevel)
	fmt.Fprintf(w, "Revision\t%d, so that none that was given out comes again\n", r.Revision)
	fmt.Fprintf(w, "State\t%s in raft/\n", bytesText(int64(r.Snapshot.DataSize)))
	fmt.Fprintf(w, "Keys\t%s in pki/\n", dash(strings.Join(r.PKIFiles, ", ")))
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, "all of the file was verified; nothing was written")
	return err
}
