package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

func snapshotDiffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "show what was added, changed and removed from snapshot A to snapshot B", ArgsUsage: "A B",
		Description: "With -o wide the fields that changed are named; values are never shown. Without the cluster key a\n" +
			"Secret counts as changed where its sealed form did, which a rotation of keys does too. The exit code\n" +
			"is 0 whether or not there are differences.",
		Flags: unlockFlags(sealFlags(
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "table, wide or json", Value: "table", EnvVars: env("output")})...),
		Action: diffSnapshots,
	}
}

func diffSnapshots(c *cli.Context) error {
	args, err := argsAndFlags(c)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return usagef("name two files: skiff snapshot diff A B")
	}
	form := c.String("output")
	if form != "table" && form != "wide" && form != "json" {
		return usagef("--output is %q, want table, wide or json", form)
	}
	keys, err := unlock(c)
	if err != nil {
		return err
	}
	open, err := openSealed(c.String("key-file"), c.String("passphrase-file"))
	if err != nil {
		return err
	}
	var files [2]*backup.File
	for i, arg := range args {
		path, done, err := fetch(c, arg)
		if err != nil {
			return err
		}
		defer done()
		if files[i], err = backup.Open(path, keys); err != nil {
			return explainSnapshot(fmt.Errorf("%s: %w", path, err))
		}
		defer files[i].Close()
	}
	a, b := files[0], files[1]
	bar := newBar("compare")
	d, err := backup.Diff(c.Context, a, b, backup.DiffOptions{Details: form != "table", OpenA: open, OpenB: open,
		Tell: func() { bar.set(a.Offset()+b.Offset(), a.Size+b.Size) }})
	bar.done()
	if err != nil {
		return fmt.Errorf("compare A, %s, and B, %s: %w", args[0], args[1], err)
	}
	if form == "json" {
		return json.NewEncoder(c.App.Writer).Encode(d)
	}
	return printDiff(c.App.Writer, d, form == "wide")
}

// printDiff lists the differences by kind, namespace and name.
func printDiff(out io.Writer, d *backup.Difference, wide bool) error {
	type row struct {
		sign string
		backup.Change
	}
	var rows []row
	for _, list := range []struct {
		sign    string
		changes []backup.Change
	}{{"+ added", d.Added}, {"~ changed", d.Changed}, {"- removed", d.Removed}} {
		for _, c := range list.changes {
			rows = append(rows, row{list.sign, c})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.Change.Compare(b.Change) })
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	head := "CHANGE\tKIND\tNAMESPACE\tNAME"
	if wide {
		head += "\tREVISION\tFIELDS"
	}
	if len(rows) > 0 {
		fmt.Fprintln(w, head)
	}
	for _, r := range rows {
		kind := r.Kind
		if kind == "" {
			kind = r.Resource
		}
		if r.Sealed && r.sign == "~ changed" {
			r.sign = "? sealed"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s", r.sign, kind, dash(r.Namespace), r.Name)
		if wide {
			fmt.Fprintf(w, "\t%s\t%s", revisions(&r.Change), fieldsText(&r.Change))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(rows) > 0 {
		fmt.Fprintln(out)
	}
	if d.A.ClusterID != d.B.ClusterID {
		fmt.Fprintf(out, "A and B are of different clusters: %s and %s\n", d.A.ClusterID, d.B.ClusterID)
	}
	if n := len(d.Own); n > 0 {
		fmt.Fprintf(out, "%d of skiff's own keys differ (certificates, members, settings)\n", n)
	}
	_, err := fmt.Fprintf(out, "revision %d to %d: %d added, %d changed, %d removed, %d the same\n",
		d.A.Revision, d.B.Revision, len(d.Added), len(d.Changed), len(d.Removed), d.Same)
	return err
}

func revisions(c *backup.Change) string {
	switch {
	case c.RevisionA == 0:
		return fmt.Sprint(c.RevisionB)
	case c.RevisionB == 0:
		return fmt.Sprint(c.RevisionA)
	}
	return fmt.Sprintf("%d>%d", c.RevisionA, c.RevisionB)
}

func fieldsText(c *backup.Change) string {
	if c.Replaced() {
		return "another object: " + strings.Join(c.Fields, ",")
	}
	return dash(strings.Join(c.Fields, ","))
}
