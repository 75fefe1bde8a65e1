package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the health of the cluster's members and store",
		Description: "Any server answers, without a quorum too: then it is what that server knows itself.\n" +
			"Exit code 1: no server answers.",
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
			return printStatus(c.App.Writer, &s, time.Now())
		},
	}
}

// printStatus shows the cluster, its members, the server that was asked, and
// what to look at.
func printStatus(out io.Writer, s *cluster.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("Cluster ID", s.Raft.ClusterID)
	if s.Leader != "" {
		row("Leader", fmt.Sprintf("%s (term %d)", s.Leader, s.Raft.Term))
	} else {
		row("Leader", fmt.Sprintf("none (term %d)", s.Raft.Term))
	}
	if s.Epoch.Number > 1 {
		row("Epoch", strings.TrimPrefix(s.Epoch.String(), "epoch "))
	}
	row("Revision", s.Raft.Revision)
	row("Feature level", s.FeatureLevel)
	if s.Upgrade != "" {
		row("Upgrade", s.Upgrade)
	}
	row("Failure tolerance", failureTolerance(s))
	if e := s.Evictions; e != nil {
		row("Evictions", evictionText(e))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := printMembers(out, s.Members, now); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := printScheduled(out, s.Snapshots, now); err != nil {
		return err
	}
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	row = func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("Asked", fmt.Sprintf("%s (skiff %s, up since %s)", s.Name, s.Version, s.Started.Format(time.RFC3339)))
	row("Role", s.Raft.State)
	row("Log index", fmt.Sprintf("%d (committed %d, applied %d)", s.Raft.LastIndex, s.Raft.Committed, s.Raft.Applied))
	row("Log fsync p99", time.Duration(s.Raft.Appends.P99).Round(time.Microsecond))
	if len(s.Duties) > 0 {
		row("Leader duties", strings.Join(s.Duties, ", "))
	}
	if s.Partial != "" {
		row("Incomplete", s.Partial)
	}
	for _, c := range s.Certificates {
		row("Certificate", certificateText(&c, now))
	}
	if s.Raft.Problem != "" {
		row("PROBLEM", s.Raft.Problem)
	}
	for _, t := range s.Warnings {
		row("WARNING", t)
	}
	return w.Flush()
}

func failureTolerance(s *cluster.Status) string {
	voters := 0
	for _, m := range s.Members {
		if m.Voter {
			voters++
		}
	}
	of := fmt.Sprintf("of %d voting servers", voters)
	switch {
	case voters == 1:
		of = "the only server"
	case s.FailureTolerance == 0:
		of += ": the next loss stops writes"
	}
	return fmt.Sprintf("%d (%s)", s.FailureTolerance, of)
}

func evictionText(e *membership.EvictionStatus) string {
	text := "none waiting"
	if e.Waiting > 0 {
		text = fmt.Sprintf("pods of %d nodes wait", e.Waiting)
	}
	if e.Frozen {
		text = fmt.Sprintf("FROZEN: %s (%s)", e.Reason, text)
		if e.Since != nil {
			text += " since " + e.Since.Format(time.RFC3339)
		}
	} else if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

func certificateText(c *membership.Certificate, now time.Time) string {
	text := fmt.Sprintf("%s: %s old, expires %s", c.Name, days(now.Sub(c.Issued)), c.NotAfter.Format(time.DateOnly))
	if c.RenewAt != nil {
		text += ", renews itself " + c.RenewAt.Format(time.DateOnly)
	}
	return text
}

// printMembers shows a row for each member. A dash is what nobody knows, or what
// agents do not have.
func printMembers(out io.Writer, members []membership.MemberStatus, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLE\tSTATE\tVOTES\tADDRESS\tVERSION\tLAG\tLAST CONTACT\tFSYNC P99\tLOAD\tSINCE")
	for i := range members {
		m := &members[i]
		votes := "-"
		switch {
		case m.Leader:
			votes = "leader"
		case m.Voter:
			votes = "yes"
		case m.Role.Votes():
			votes = "not yet"
		}
		state := string(m.State)
		if m.Problem != "" {
			state += "!"
		}
		lag, contact, fsync, since := "-", "-", "-", "-"
		if m.Lag != nil {
			lag = strconv.FormatUint(*m.Lag, 10)
		}
		if m.LastContact != nil && *m.LastContact >= 0 && !m.Leader {
			contact = m.LastContact.Round(time.Millisecond).String()
		}
		if m.FsyncP99 != nil && *m.FsyncP99 > 0 {
			fsync = m.FsyncP99.Round(10 * time.Microsecond).String()
		}
		if m.Since != nil {
			since = days(now.Sub(*m.Since))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d%%\t%s\n", m.Name, m.Role, state, votes, dash(m.Address), dash(m.Version),
			lag, contact, fsync, m.Load, since)
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
