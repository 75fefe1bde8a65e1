package main

import (
	"encoding/json"
	"fmt"

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
	what := "restored"
	if c.Bool("dry-run") {
		what = "would restore"
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s revision %d with %d keys to %s, as epoch %d of the cluster; start it with: skiff server --data-dir %s (servers that are left, and agents, rejoin by themselves)\n",
		what, done.Snapshot.Revision, done.Snapshot.TotalKeys, done.DataDir, done.Epoch.Number, done.DataDir)
	return err
}
