package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/skiff-sh/skiff/cluster/upgrade"
)

func showPlan(out io.Writer, st *upgrade.Status, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(st)
	}
	p := st.Plan
	fmt.Fprintf(out, "Upgrade to skiff %s (SHA-256 %.16s, %s, %d MiB)\n\n", p.Binary.Version, p.Binary.SHA256, signedText(p.Binary), p.Binary.Size>>20)
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tROLE\tVERSION\tTARGET\tSKEW\tSTEPS")
	for _, m := range p.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", m.Name, m.Role, dash(m.Version), dash(m.Target), m.Skew, dash(strings.Join(m.Steps, ", ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for i, s := range p.Steps {
		fmt.Fprintf(out, "%d. %s\n", i+1, s)
	}
	if len(p.Notes)+len(p.Blockers) > 0 {
		fmt.Fprintln(out)
	}
	for _, n := range p.Notes {
		fmt.Fprintln(out, "NOTE:", n)
	}
	for _, b := range p.Blockers {
		fmt.Fprintln(out, "BLOCKER:", b)
	}
	return nil
}

func signedText(b upgrade.Binary) string {
	if len(b.Signature) > 0 {
		return "signed"
	}
	return "not signed"
}

func showUpgrade(out io.Writer, st *upgrade.Status, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(st)
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("Feature level", st.Level)
	if st.Finalize > 0 && len(st.Unready) == 0 {
		row("Finalize", fmt.Sprintf("possible, to feature level %d: skiff upgrade finalize", st.Finalize))
	}
	r := st.Rollout
	if r == nil {
		row("Roll-out", "there was none yet")
	} else {
		row("Roll-out", fmt.Sprintf("to %s, by %s, begun %s", r.Binary.Version, r.By, r.Started.Format(time.RFC3339)))
		stage := string(r.Stage)
		if r.Paused {
			stage += " (paused)"
		}
		row("Stage", stage)
		if r.Stopped != "" {
			row("STOPPED", r.Stopped)
		}
		if r.Snapshot != nil {
			row("Snapshot", fmt.Sprintf("%s on %s, revision %d", r.Snapshot.File, r.Snapshot.Server, r.Snapshot.Revision))
		}
	}
	for _, t := range st.Waits {
		row("Waits for", t)
	}
	if st.Partial != "" {
		row("Incomplete", st.Partial)
	}
	if err := w.Flush(); err != nil || r == nil {
		return err
	}
	fmt.Fprintln(out)
	versions := map[string]string{}
	for _, i := range st.Members {
		versions[i.Name] = i.Version
	}
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tKIND\tBEFORE\tNOW\tSTATE\tFOR\tNOTE")
	for _, m := range r.Members {
		kind := "agent"
		if m.Server {
			kind = "server"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, kind, dash(m.From), dash(versions[m.Name]), m.State, days(time.Since(m.Since)), dash(m.Error))
	}
	return w.Flush()
}

const (
	followEvery   = 500 * time.Millisecond
	followSilence = 3 * time.Minute // without an answer of any server
)

// followUpgrade shows what happens until the roll-out is over, stops, or is
// paused. It goes on without this command.
func followUpgrade(c *cli.Context, st *upgrade.Status, asJSON bool) error {
	f := follower{out: c.App.Writer, json: asJSON, live: !asJSON && term.IsTerminal(int(os.Stdout.Fd()))}
	if r := st.Rollout; r != nil {
		f.began = r.Started
		if n := len(r.History); n > 1 { // what was before is in skiff upgrade status
			f.seen = r.History[n-2]
		}
	}
	heard := time.Now()
	for {
		if st != nil {
			heard = time.Now()
			over, err := f.show(st)
			if over || err != nil {
				return err
			}
		} else if time.Since(heard) > followSilence {
			f.clear()
			return fmt.Errorf("no server has answered for %s; the roll-out may go on: skiff upgrade status", followSilence)
		}
		select {
		case <-c.Context.Done():
			f.clear()
			return cli.Exit("the roll-out goes on without this command: see skiff upgrade status, stop it with skiff upgrade pause", exitFailed)
		case <-time.After(followEvery):
		}
		now, err := upgradeStatus(c)
		switch {
		case err == nil && now.Partial == "" && now.Rollout != nil:
			st = now
		case err == nil || c.Context.Err() != nil:
			st = nil
		default: // a server that changes is not there for a while
			st = nil
		}
	}
}

// follower shows a roll-out as it goes.
type follower struct {
	out   io.Writer
	json  bool
	live  bool // the last line is rewritten
	began time.Time
	seen  upgrade.Event // the newest that was shown
	last  string        // shown last
}

func (f *follower) show(st *upgrade.Status) (over bool, err error) {
	r := st.Rollout
	over = r.Stage.Over() || r.Stopped != "" || r.Paused && !working(r)
	if f.json {
		at := st.Waits
		st.Waits = nil // they are words for people, and would be all that changes
		key, err := json.Marshal(r)
		if err != nil {
			return over, err
		}
		st.Waits = at
		if string(key) != f.last {
			f.last = string(key)
			if err := json.NewEncoder(f.out).Encode(st); err != nil {
				return over, err
			}
		}
		return over, f.end(r, over)
	}
	next := 0 // clocks of leaders differ, so the order counts, not the time
	for i, e := range r.History {
		if e == f.seen {
			next = i + 1
		}
	}
	for _, e := range r.History[next:] {
		f.clear()
		who := e.Member
		if who == "" {
			who = "*"
		}
		fmt.Fprintf(f.out, "%6s  %-16s %s\n", e.At.Sub(f.began).Round(100*time.Millisecond), who, e.Text)
	}
	if n := len(r.History); n > 0 {
		f.seen = r.History[n-1]
	}
	if f.live && !over {
		f.clear()
		width, _, err := term.GetSize(int(os.Stdout.Fd()))
		if err != nil || width < 20 {
			width = 80
		}
		text := progressText(st)
		f.last = text[:min(len(text), width-1)]
		fmt.Fprint(f.out, f.last)
	}
	return over, f.end(r, over)
}

func (f *follower) clear() {
	if f.live && f.last != "" {
		fmt.Fprint(f.out, "\r\x1b[K")
		f.last = ""
	}
}

// end says how it ended.
func (f *follower) end(r *upgrade.Rollout, over bool) error {
	if !over {
		return nil
	}
	f.clear()
	say := func(text string) {
		if !f.json {
			fmt.Fprintln(f.out, text)
		}
	}
	switch {
	case r.Stopped != "":
		return errors.New("the roll-out has stopped: " + r.Stopped + "\nskiff upgrade resume tries again, skiff upgrade rollback brings every member back")
	case r.Stage == upgrade.StageDone:
		say(fmt.Sprintf("Every member runs %s, after %s. When you are sure of it: skiff upgrade finalize. Until then: skiff upgrade rollback.", r.Binary.Version, r.Ended.Sub(r.Started).Round(time.Second)))
	case r.Stage == upgrade.StageBack:
		var stranded []string
		for _, m := range r.Members {
			if m.State == upgrade.StateStranded || m.State == upgrade.StateSkipped && m.Changed {
				stranded = append(stranded, fmt.Sprintf("%s (skiff %s)", m.Name, m.From))
			}
		}
		if len(stranded) > 0 {
			return errors.New("rolled back, but for members that need the version before to be installed by hand: " + strings.Join(stranded, ", "))
		}
		say("Every member runs the version from before.")
	case r.Paused:
		say("It is paused: skiff upgrade resume goes on.")
	}
	return nil
}

// working tells whether a member is changing.
func working(r *upgrade.Rollout) bool {
	for _, m := range r.Members {
		switch m.State {
		case upgrade.StateFetching, upgrade.StateSwitching, upgrade.StateSettling, upgrade.StateReturning, upgrade.StateSettlingOld:
			return true
		}
	}
	return false
}

// progressText is one line on what goes on.
func progressText(st *upgrade.Status) string {
	r := st.Rollout
	through := 0
	for _, m := range r.Members {
		switch m.State {
		case upgrade.StateDone, upgrade.StateBack, upgrade.StateUntouched, upgrade.StateSkipped, upgrade.StateStranded:
			through++
		}
	}
	const width = 20
	full := 0
	if len(r.Members) > 0 {
		full = width * through / len(r.Members)
	}
	text := fmt.Sprintf("[%s%s] %d/%d %s", strings.Repeat("=", full), strings.Repeat(" ", width-full), through, len(r.Members), r.Stage)
	if len(st.Waits) > 0 {
		text += ": waits for " + st.Waits[0]
	}
	return text
}
