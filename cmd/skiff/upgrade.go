package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/servers"
	"github.com/skiff-sh/skiff/cluster/upgrade"
)

func upgradeCommand() *cli.Command {
	yes := &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")}
	dryRun := &cli.BoolFlag{Name: "dry-run", Usage: "say what would be done", EnvVars: env("dry-run")}
	noWait := &cli.BoolFlag{Name: "no-wait", Usage: "return as soon as it has begun", EnvVars: env("no-wait")}
	simple := func(name, usage string, more ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Flags: clientFlags(append(more, outputFlag())...)}
	}
	plan := simple("plan", "show what apply would do, and what stands against it", sourceFlags()...)
	plan.Description = "Exit code 1: something stands against it."
	plan.Action = func(c *cli.Context) error { return upgradeApply(c, true) }
	apply := simple("apply", "bring the whole cluster to another version while it works", append(sourceFlags(), yes, dryRun, noWait)...)
	apply.Description = "First a snapshot is taken and the program goes to every member. Then servers change one at a time, the\n" +
		"leader last, and agents after them; each has to be as well as before until the next begins. Programs are\n" +
		"changed in place: containers and connections go on, only exec and port-forward sessions end. A member\n" +
		"whose new program is not healthy is put back by itself, and the roll-out stops.\n" +
		"It goes on without this command: ^C only ends the display."
	apply.Action = func(c *cli.Context) error { return upgradeApply(c, c.Bool("dry-run")) }
	pause := simple("pause", "begin with no further member")
	pause.Action = func(c *cli.Context) error { return upgradeAct(c, upgrade.ActPause, false) }
	resume := simple("resume", "go on after a pause, or try again where it stopped", noWait)
	resume.Action = func(c *cli.Context) error { return upgradeAct(c, upgrade.ActResume, !c.Bool("no-wait")) }
	rollback := simple("rollback", "bring every member back to the version before: agents first, then servers", yes, dryRun, noWait)
	rollback.Action = upgradeRollback
	finalize := simple("finalize", "let the cluster use what is new in the version that all members run; irreversible", yes, dryRun)
	finalize.Description = "Raises the feature level. Until then every member can go back to the version before; afterwards none can."
	finalize.Action = upgradeFinalize
	status := simple("status", "show how the roll-out goes, or how the last one went", &cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "until it ends", EnvVars: env("follow")})
	status.Action = func(c *cli.Context) error {
		asJSON, err := upgradeArgs(c)
		if err != nil {
			return err
		}
		st, err := upgradeStatus(c)
		if err != nil {
			return err
		}
		if c.Bool("follow") && st.Rollout != nil && !st.Rollout.Stage.Over() {
			return followUpgrade(c, st, asJSON)
		}
		return showUpgrade(c.App.Writer, st, asJSON)
	}
	return &cli.Command{
		Name: "upgrade", Usage: "change the version of a whole cluster while it works",
		Subcommands: []*cli.Command{plan, apply, pause, resume, rollback, finalize, status},
	}
}

func upgradeArgs(c *cli.Context) (asJSON bool, err error) {
	if err := noArgs(c); err != nil {
		return false, err
	}
	return wantJSON(c)
}

// upgradeDo asks the cluster for an action.
func upgradeDo(c *cli.Context, action string, q upgrade.Request) (*upgrade.Status, error) {
	resp, err := callSkiff(c, http.MethodPost, upgrade.Path+"/"+action, q)
	if err != nil {
		return nil, err
	}
	return readUpgrade(resp)
}

func upgradeStatus(c *cli.Context) (*upgrade.Status, error) {
	resp, err := getSkiff(c, upgrade.Path)
	if err != nil {
		return nil, err
	}
	return readUpgrade(resp)
}

func readUpgrade(resp *http.Response) (*upgrade.Status, error) {
	defer resp.Body.Close()
	st := new(upgrade.Status)
	if err := json.NewDecoder(resp.Body).Decode(st); err != nil {
		return nil, fmt.Errorf("read the state of the upgrade: %w", err)
	}
	return st, nil
}

// upgradeApply plans and, unless only that is asked for, begins and follows.
func upgradeApply(c *cli.Context, only bool) error {
	asJSON, err := upgradeArgs(c)
	if err != nil {
		return err
	}
	q := upgrade.Request{Options: upgrade.Options{Drain: c.Bool("drain"), MaxUnavailable: c.Int("max-unavailable"),
		IgnoreDead: c.Bool("ignore-dead"), AllowInterruption: c.Bool("allow-interruption"), Trial: c.Duration("trial")}}
	switch {
	case q.Options.MaxUnavailable < 1:
		return usagef("--max-unavailable %d: want at least 1", q.Options.MaxUnavailable)
	case q.Options.Trial < minTrial:
		return usagef("--trial %s: want at least %s", q.Options.Trial, minTrial)
	}
	program, err := findProgram(c)
	if err != nil {
		return err
	}
	defer program.close()
	q.Binary = program.Binary
	st, err := upgradeDo(c, upgrade.ActPlan, q)
	if err != nil {
		return err
	}
	if err := showPlan(c.App.Writer, st, asJSON); err != nil {
		return err
	}
	if len(st.Plan.Blockers) > 0 {
		return cli.Exit("this stands against the upgrade: "+strings.Join(st.Plan.Blockers, "; "), exitFailed)
	}
	if only {
		return nil
	}
	if !c.Bool("yes") {
		if err := confirm(c, "Go on?"); err != nil {
			return err
		}
	}
	if q.Holder, err = uploadProgram(c, program); err != nil {
		return err
	}
	if st, err = upgradeDo(c, upgrade.ActApply, q); err != nil {
		return err
	}
	if c.Bool("no-wait") {
		return showUpgrade(c.App.Writer, st, asJSON)
	}
	return followUpgrade(c, st, asJSON)
}

const minTrial = 5 * time.Second

func upgradeAct(c *cli.Context, action string, follow bool) error {
	asJSON, err := upgradeArgs(c)
	if err != nil {
		return err
	}
	st, err := upgradeDo(c, action, upgrade.Request{})
	if err != nil {
		return err
	}
	if follow {
		return followUpgrade(c, st, asJSON)
	}
	return showUpgrade(c.App.Writer, st, asJSON)
}

func upgradeRollback(c *cli.Context) error {
	if _, err := upgradeArgs(c); err != nil {
		return err
	}
	st, err := upgradeStatus(c)
	if err != nil {
		return err
	}
	r := st.Rollout
	if r == nil {
		return cli.Exit("there was no roll-out yet", exitFailed)
	}
	out := os.Stderr // standard output may be JSON
	if r.Stage == upgrade.StageFinal {
		return cli.Exit(fmt.Sprintf("the roll-out to %s is finalized: the feature level is %d, below which there is no way back", r.Binary.Version, st.Level), exitFailed)
	}
	back := 0
	for _, m := range r.Members {
		if m.Changed {
			back++
			fmt.Fprintf(out, "%s goes back to %s\n", m.Name, m.From)
		}
	}
	if back == 0 {
		fmt.Fprintln(out, "no member runs the new version: the roll-out only ends")
	}
	if c.Bool("dry-run") {
		return nil
	}
	if !c.Bool("yes") {
		if err := confirm(c, fmt.Sprintf("Roll back from %s?", r.Binary.Version)); err != nil {
			return err
		}
	}
	return upgradeAct(c, upgrade.ActRollback, !c.Bool("no-wait"))
}

func upgradeFinalize(c *cli.Context) error {
	if _, err := upgradeArgs(c); err != nil {
		return err
	}
	st, err := upgradeStatus(c)
	if err != nil {
		return err
	}
	out := os.Stderr
	for _, why := range st.Unready {
		fmt.Fprintf(out, "in the way: %s\n", why)
	}
	if len(st.Unready) > 0 {
		return cli.Exit("nothing was done", exitFailed)
	}
	switch {
	case st.Finalize > st.Level:
		fmt.Fprintf(out, "The feature level of the cluster rises from %d to %d. This can't be undone: from then on no member can go back to the version before.\n", st.Level, st.Finalize)
	case st.Rollout != nil && st.Rollout.Stage == upgrade.StageDone:
		fmt.Fprintf(out, "The feature level stays at %d: %s has nothing that needs a higher one. The roll-out ends, and there is no rollback any more.\n", st.Level, st.Rollout.Binary.Version)
	default:
		return cli.Exit(fmt.Sprintf("there is nothing to finalize: the feature level is %d, the highest that all members know", st.Level), exitFailed)
	}
	if c.Bool("dry-run") {
		return nil
	}
	if !c.Bool("yes") {
		if err := confirm(c, "Finalize?"); err != nil {
			return err
		}
	}
	return upgradeAct(c, upgrade.ActFinalize, false)
}

// uploadProgram brings the program to a server, unless it has it, and gives the
// server's name.
func uploadProgram(c *cli.Context, p *program) (holder string, err error) {
	client, err := apiClient(c)
	if err != nil {
		return "", err
	}
	send := func(method, query string, body io.ReadCloser) (*http.Response, error) {
		req, err := http.NewRequestWithContext(c.Context, method, servers.Host+upgrade.BinaryPath+p.SHA256+query, body)
		if err != nil {
			return nil, err
		}
		if body != nil {
			about, err := json.Marshal(p.Binary)
			if err != nil {
				return nil, err
			}
			req.ContentLength = p.Size
			req.Header.Set(upgrade.BinaryHeader, base64.StdEncoding.EncodeToString(about))
			req.Header.Set("Content-Type", "application/octet-stream")
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("no server answers: %w", err)
		}
		return resp, nil
	}
	resp, err := send(http.MethodGet, "?describe", nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 == 2 {
		if up, err := readUpload(resp); err == nil && bytes.Equal(up.Binary.Signature, p.Signature) {
			return up.Holder, nil
		}
	}
	resp.Body.Close()
	f, err := os.Open(p.path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := newBar("upload")
	defer b.done()
	resp, err = send(http.MethodPut, "", &counted{ReadCloser: f, tell: func(n int64) { b.set(n, p.Size) }})
	if err != nil {
		return "", fmt.Errorf("upload the program: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return "", fmt.Errorf("upload the program: %w", answerError(resp))
	}
	up, err := readUpload(resp)
	if err != nil {
		return "", err
	}
	return up.Holder, nil
}

func readUpload(resp *http.Response) (up upgrade.Uploaded, err error) {
	defer resp.Body.Close()
	if err = json.NewDecoder(resp.Body).Decode(&up); err == nil && up.Holder == "" {
		err = fmt.Errorf("it names no server")
	}
	if err != nil {
		err = fmt.Errorf("read the answer to the upload: %w", err)
	}
	return up, err
}

// counted tells how much was read.
type counted struct {
	io.ReadCloser
	n    int64
	tell func(int64)
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n += int64(n)
	r.tell(r.n)
	return n, err
}
