package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// printScheduled shows a row for each place where a server saves snapshots.
func printScheduled(out io.Writer, all []membership.SnapshotStatus, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "SNAPSHOTS OF\tSCHEDULE\tPLACE\tLAST\tAGE\tSIZE\tRESULT\tNEXT")
	for _, s := range all {
		if len(s.Places) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t-\t-\n", s.Server, s.Schedule)
		}
		for _, p := range s.Places {
			last, age, size := "-", "-", "-"
			if l := p.Last; l != nil {
				last, age, size = l.At.Format(time.RFC3339), days(now.Sub(l.At)), bytesText(l.Size)
			}
			next := "-"
			if !p.Next.IsZero() {
				next = p.Next.Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Server, s.Schedule, p.Place, last, age, size, snapshotResult(&p), next)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return nil
}

// snapshotResult is one word; what it means is among the warnings.
func snapshotResult(p *backup.PlaceStatus) string {
	switch {
	case p.Error != "":
		return "FAILED"
	case p.Overdue != nil:
		return "OVERDUE"
	case p.Last == nil:
		return "none yet"
	}
	return "ok"
}
