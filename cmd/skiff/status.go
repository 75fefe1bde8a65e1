package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the health of the cluster's servers and store",
		Flags: clientFlags(outputFlag()),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			resp, err := getSkiff(c, cluster.StatusPath)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if asJSON {
				_, err := io.Copy(c.App.Writer, resp.Body)
				return err
			}
			var s cluster.Status
			if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
				return fmt.Errorf("read status: %w", err)
			}
			return printStatus(c.App.Writer, s)
		},
	}
}

func printStatus(out io.Writer, s cluster.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("Server", s.Name)
	row("Version", s.Version)
	row("Cluster ID", s.Raft.ClusterID)
	row("Role", s.Raft.State)
	row("Leader", s.Raft.LeaderID)
	row("Term", s.Raft.Term)
	row("Log index", fmt.Sprintf("%d (committed %d, applied %d)", s.Raft.LastIndex, s.Raft.Committed, s.Raft.Applied))
	row("Revision", s.Raft.Revision)
	row("Log fsync p99", time.Duration(s.Raft.Appends.P99).Round(time.Microsecond))
	if len(s.Duties) > 0 {
		row("Leader duties", strings.Join(s.Duties, ", "))
	}
	row("Up since", s.Started.Format(time.RFC3339))
	if s.Raft.Problem != "" {
		row("PROBLEM", s.Raft.Problem)
	}
	return w.Flush()
}
