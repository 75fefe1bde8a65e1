package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/live"
	"github.com/skiff-sh/skiff/cluster/servers"
)

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "bring a running cluster back to the state in FILE", ArgsUsage: "--live FILE",
		Description: "All objects become those of FILE, at once and on all servers, or nothing changes. Pods that are in\n" +
			"FILE run on; pods that are not are stopped. Servers, members, nodes, keys, certificates and settings\n" +
			"stay as they are. --dry-run says what would be lost, come back and change.\n" +
			"If the cluster does not run any more, see: skiff snapshot restore, and skiff recover.",
		Flags: unlockFlags(clientFlags(
			&cli.BoolFlag{Name: "live", Usage: "restore into the running cluster", EnvVars: env("live")},
			&cli.BoolFlag{Name: "dry-run", Usage: "change nothing and say what would be done", EnvVars: env("dry-run")},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")},
			outputFlag())...),
		Action: restoreLive,
	}
}

func restoreLive(c *cli.Context) error {
	args, err := argsAndFlags(c)
	if err != nil {
		return err
	}
	if !c.Bool("live") {
		return usagef("say --live to change the running cluster; a data directory is made from a snapshot by: skiff snapshot restore")
	}
	if len(args) != 1 {
		return usagef("name one file: skiff restore --live FILE")
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	keys, err := unlock(c)
	if err != nil {
		return err
	}
	path, remove, err := fetch(c, args[0])
	if err != nil {
		return err
	}
	defer remove()
	if _, err := verifySnapshot(c, path, keys); err != nil {
		return err
	}
	out := c.App.Writer
	if asJSON {
		out = os.Stderr
	}
	if c.Bool("dry-run") || !c.Bool("yes") {
		plan, err := sendRestore(c, path, keys, true)
		if err != nil {
			return err
		}
		if c.Bool("dry-run") && asJSON {
			return json.NewEncoder(c.App.Writer).Encode(plan)
		}
		if err := printRestore(out, plan); err != nil || c.Bool("dry-run") {
			return err
		}
		if err := confirm(c, "Restore it?"); err != nil {
			return err
		}
	}
	done, err := sendRestore(c, path, keys, false)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(done)
	}
	_, err = fmt.Fprintf(c.App.Writer, "restored: the state of revision %d is that of revision %d now; %d objects came back, %d changed, %d are gone; %d pods run on, %d stop, %d start\n",
		done.Snapshot.Revision, done.Revision, len(done.Objects.Added), len(done.Objects.Changed), len(done.Objects.Removed),
		len(done.Pods.Stay), len(done.Pods.Stop), len(done.Pods.Start))
	return err
}

// sendRestore sends a snapshot to a server and waits for the end.
func sendRestore(c *cli.Context, path string, keys backup.Unlock, dry bool) (*cluster.RestoreReport, error) {
	client, err := apiClient(c)
	if err != nil {
		return nil, err
	}
	f, err := backup.Open(path, keys)
	if err != nil {
		return nil, explainSnapshot(fmt.Errorf("%s: %w", path, err))
	}
	defer f.Close()
	b := newBar("upload")
	defer b.done()
	url := servers.Host + cluster.RestorePath
	if dry {
		url += "?" + cluster.RestoreDryRun + "=true"
	}
	req, err := http.NewRequestWithContext(c.Context, http.MethodPost, url, &told{f, b})
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := client.Do(req)
	if err != nil {
		if c.Context.Err() != nil {
			return nil, errors.New("interrupted while the file was sent; nothing was changed")
		}
		return nil, fmt.Errorf("send the snapshot: %w; nothing was changed", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, answerError(resp)
	}
	begun := false
	for lines := bufio.NewReader(resp.Body); ; {
		line, err := lines.ReadBytes('\n')
		var e cluster.RestoreEvent
		if len(line) > 0 && err == nil {
			err = json.Unmarshal(line, &e)
		}
		switch {
		case err != nil && !begun && c.Context.Err() != nil:
			return nil, errors.New("interrupted; nothing was changed")
		case err != nil:
			if begun {
				return nil, fmt.Errorf("the connection to the server ended (%w): it is not known whether the snapshot was restored; --dry-run shows what there is still to do", err)
			}
			return nil, fmt.Errorf("the connection to the server ended: %w; nothing was changed", err)
		case e.Error != "":
			return nil, errors.New(e.Error)
		case e.Report != nil:
			return e.Report, nil
		case e.Step == "restoring":
			begun = true
		case e.Step == "spreading":
			begun = true
			least := e.Of
			for _, have := range e.Servers {
				least = min(least, have)
			}
			b.set(least, e.Of)
		}
	}
}

// told shows how much of a file was sent.
type told struct {
	*backup.File
	b *bar
}

func (t *told) Read(p []byte) (int, error) {
	n, err := t.File.Read(p)
	t.b.set(t.Offset(), t.Size)
	return n, err
}

// Close leaves the file to its owner.
func (t *told) Close() error { return nil }

// printRestore says what a restore would do.
func printRestore(out io.Writer, r *cluster.RestoreReport) error {
	type row struct {
		sign string
		backup.Change
	}
	var rows []row
	events := 0
	for _, list := range []struct {
		sign    string
		changes []backup.Change
	}{{"+ comes back", r.Objects.Added}, {"~ changes", r.Objects.Changed}, {"- is lost", r.Objects.Removed}} {
		for _, c := range list.changes {
			if c.Resource == "events" || strings.HasPrefix(c.Resource, "events.") {
				events++
				continue
			}
			rows = append(rows, row{list.sign, c})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.Change.Compare(b.Change) })
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if len(rows) > 0 {
		fmt.Fprintln(w, "OBJECT\tKIND\tNAMESPACE\tNAME\tFIELDS")
	}
	for _, r := range rows {
		kind := r.Kind
		if kind == "" {
			kind = r.Resource
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.sign, kind, dash(r.Namespace), r.Name, fieldsText(&r.Change))
	}
	pods := []struct {
		what string
		list []live.Pod
	}{{"stops", r.Pods.Stop}, {"starts", r.Pods.Start}, {"has ended, and stays so", r.Pods.Ended}, {"runs on", r.Pods.Stay}}
	if err := w.Flush(); err != nil {
		return err
	}
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	head := "\nPOD\tNAMESPACE\tNAME\tNODE\n"
	for _, p := range pods {
		for _, pod := range p.list {
			fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\n", head, p.what, pod.Namespace, pod.Name, dash(pod.Node))
			head = ""
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nfrom revision %d back to %d: %d objects are lost, %d come back, %d change, %d stay, %d of all these are events; %d pods run on, %d stop, %d start\n",
		r.Revision, r.Snapshot.Revision, len(r.Objects.Removed), len(r.Objects.Added), len(r.Objects.Changed), r.Objects.Same, events,
		len(r.Pods.Stay), len(r.Pods.Stop), len(r.Pods.Start))
	return err
}
