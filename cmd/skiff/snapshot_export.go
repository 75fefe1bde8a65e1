package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

func snapshotExportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "print the objects of a snapshot as a List that kubectl reads", ArgsUsage: "FILE",
		Description: "All kinds are in it, custom resources, ConfigMaps and Events too. Secrets are sealed: without\n" +
			"--key-file or --passphrase-file they are left out. They are printed in plain then, so keep the output\n" +
			"from others. Namespaces and definitions come first, so that kubectl apply -f takes it; where\n" +
			"there are custom resources it takes it the second time. --unowned gives what a person wrote: in another\n" +
			"cluster the rest follows from it.",
		Flags: unlockFlags(sealFlags(
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "yaml or json", Value: "yaml", EnvVars: env("output")},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "only what is in this namespace, and itself", EnvVars: env("namespace")},
			&cli.StringFlag{Name: "kind", Usage: "only this kind, such as Deployment, deployments or widgets.example.com", EnvVars: env("kind")},
			&cli.BoolFlag{Name: "unowned", Usage: "leave out what controllers make anew elsewhere: objects with an owner, Events, Leases, endpoints", EnvVars: env("unowned")},
			&cli.BoolFlag{Name: "raw", Usage: "keep uid, resourceVersion and managedFields, with which kubectl creates nothing", EnvVars: env("raw")})...),
		Action: exportSnapshot,
	}
}

func exportSnapshot(c *cli.Context) error {
	path, err := oneFile(c)
	if err != nil {
		return err
	}
	form := c.String("output")
	if form != "yaml" && form != "json" {
		return usagef("--output is %q, want yaml or json", form)
	}
	keys, err := unlock(c)
	if err != nil {
		return err
	}
	open, err := openSealed(c.String("key-file"), c.String("passphrase-file"))
	if err != nil {
		return err
	}
	path, done, err := fetch(c, path)
	if err != nil {
		return err
	}
	defer done()
	f, err := backup.Open(path, keys)
	if err != nil {
		return explainSnapshot(fmt.Errorf("export snapshot %s: %w", path, err))
	}
	defer f.Close()
	b := newBar("export")
	exported, err := backup.Export(c.Context, f, c.App.Writer, backup.ExportOptions{JSON: form == "json",
		Namespace: c.String("namespace"), Kind: c.String("kind"), Raw: c.Bool("raw"), Unowned: c.Bool("unowned"), Open: open, Progress: b.snapshot})
	b.done()
	if err != nil {
		return fmt.Errorf("export snapshot %s: %w", path, err)
	}
	if n := len(exported.Sealed); n > 0 {
		fmt.Fprintf(os.Stderr, "skiff: %d objects are left out because they are sealed (%s …): name a copy of the cluster key with --key-file, or the file of its passphrase with --passphrase-file\n", n, exported.Sealed[0])
	}
	if n := len(exported.Unknown); n > 0 {
		fmt.Fprintf(os.Stderr, "skiff: %d objects are left out because this version of skiff does not know their kind (%s …)\n", n, exported.Unknown[0])
	}
	return nil
}
