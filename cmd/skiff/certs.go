package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/trust"
)

func certsCommand() *cli.Command {
	wait := &cli.DurationFlag{Name: "wait", Usage: "how long to wait for the members", Value: 2 * time.Minute, EnvVars: env("wait")}
	return &cli.Command{
		Name:  "certs",
		Usage: "show and rotate certificates and keys of the cluster",
		Description: "Certificates of members renew themselves, and none of these commands restarts anything.\n" +
			"The CA is replaced by rotate-ca, which ends with both trusted and the new one in use, and\n" +
			"rotate-ca --finish, after which the old one is not trusted any more: kubeconfigs that were\n" +
			"handed out before have to be replaced by then.",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show CAs, the certificates that members use, and rotations under way",
				Flags:  clientFlags(outputFlag()),
				Action: func(c *cli.Context) error { return certs(c, http.MethodGet, trust.StatusPath, nil, nil) },
			},
			{
				Name: "rotate", Usage: "issue the certificates of all members anew",
				Flags: clientFlags(wait, outputFlag()),
				Action: func(c *cli.Context) error {
					return certs(c, http.MethodPost, trust.RotatePath, nil, func(s *trust.Status) bool { return len(s.WaitingOn) == 0 })
				},
			},
			{
				Name: "rotate-ca", Usage: "replace the CA, or finish replacing it",
				Flags: clientFlags(wait, outputFlag(),
					&cli.BoolFlag{Name: "finish", Usage: "stop trusting the old CA", EnvVars: env("finish")},
					&cli.BoolFlag{Name: "force", Usage: "with --finish: also if members are cut off by it, which have to join anew", EnvVars: env("force")}),
				Action: rotateCA,
			},
			{
				Name: "rotate-gossip-key", Usage: "replace the key that encrypts gossip",
				Flags: clientFlags(wait, outputFlag()),
				Action: func(c *cli.Context) error {
					return certs(c, http.MethodPost, trust.RotateGossipKeyPath, nil, func(s *trust.Status) bool { return s.GossipRotation == nil && len(s.WaitingOn) == 0 })
				},
			},
		},
	}
}

func rotateCA(c *cli.Context) error {
	finish, force := c.Bool("finish"), c.Bool("force")
	if force && !finish {
		return usagef("--force goes with --finish")
	}
	if !finish {
		return certs(c, http.MethodPost, trust.RotateCAPath, nil, func(s *trust.Status) bool {
			return s.CARotation != nil && s.CARotation.Phase == trust.PhaseOverlap
		})
	}
	query := url.Values{"finish": {"true"}}
	if force {
		query.Set("force", "true")
	}
	return certs(c, http.MethodPost, trust.RotateCAPath, query, func(s *trust.Status) bool { return len(s.WaitingOn) == 0 })
}

// certs sends one request and shows the status; done is what to wait for.
func certs(c *cli.Context, method, path string, query url.Values, done func(*trust.Status) bool) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	s, err := certsStatus(c, method, path)
	if err != nil {
		return err
	}
	if query.Has("force") && len(s.Absent) > 0 {
		fmt.Fprintln(os.Stderr, "skiff: cut off, to be joined anew:", strings.Join(s.Absent, ", "))
	}
	var late error
	if done != nil {
		s, late = awaitCerts(c, s, done)
	}
	if asJSON {
		err = json.NewEncoder(c.App.Writer).Encode(s)
	} else {
		err = printCerts(c.App.Writer, s, time.Now())
	}
	return errors.Join(err, late)
}

func certsStatus(c *cli.Context, method, path string) (*trust.Status, error) {
	resp, err := callSkiff(c, method, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var s trust.Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("read the state of the certificates: %w", err)
	}
	return &s, nil
}

// certsPoll is how often the state is asked for while members come along.
const certsPoll = time.Second

// awaitCerts waits until done, for as long as --wait says. The rotation goes on
// without it.
func awaitCerts(c *cli.Context, s *trust.Status, done func(*trust.Status) bool) (*trust.Status, error) {
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("wait"))
	defer cancel()
	for !done(s) {
		select {
		case <-ctx.Done():
			who := "the leader"
			if len(s.WaitingOn) > 0 {
				who = strings.Join(s.WaitingOn, ", ")
			}
			return s, fmt.Errorf("begun, and waiting for %s; it goes on by itself: skiff certs status", who)
		case <-time.After(certsPoll):
		}
		// A server that has just changed its own certificates may be asked again.
		if now, err := certsStatus(c, http.MethodGet, trust.StatusPath); err == nil {
			s = now
		}
	}
	return s, nil
}

func printCerts(out io.Writer, s *trust.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "CA\tSHA256\tAGE\tEXPIRES\tUSE")
	for _, ca := range s.CAs {
		use := "trusted"
		if ca.Signs {
			use = "trusted, signs"
		}
		fmt.Fprintf(w, "%s\t%.16s\t%s\t%s\t%s\n", ca.Name, ca.SHA256, days(now.Sub(ca.Issued)), expiry(ca.NotAfter, now), use)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintf(w, "Generation\t%d\n", s.Generation)
	fmt.Fprintf(w, "Gossip keys\t%d\n", s.GossipKeys)
	fmt.Fprintf(w, "Rotation of the CA\t%s\n", rotationText(s.CARotation, now))
	fmt.Fprintf(w, "Rotation of the gossip key\t%s\n", rotationText(s.GossipRotation, now))
	if len(s.WaitingOn) > 0 {
		fmt.Fprintf(w, "Waiting on\t%s\n", strings.Join(s.WaitingOn, ", "))
	}
	if len(s.Absent) > 0 {
		fmt.Fprintf(w, "Behind and not alive\t%s\n", strings.Join(s.Absent, ", "))
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "PROBLEM\t%s\n", s.Problem)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tGENERATION\tPORT\tSUBJECT\tCA\tAGE\tEXPIRES\tRENEWED IN")
	for _, m := range s.Members {
		for _, cert := range m.Certificates {
			if cert.Subject == "" {
				fmt.Fprintf(w, "%s\t%d\t%s\t(%s)\n", m.Name, m.Generation, cert.Purpose, cert.Problem)
				continue
			}
			renewed := days(cert.RenewAt.Sub(now))
			if cert.Problem != "" {
				renewed += " (" + cert.Problem + ")"
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Generation, cert.Purpose, cert.Subject, cert.CA,
				days(now.Sub(cert.Issued)), expiry(cert.NotAfter, now), renewed)
		}
		if len(m.Certificates) == 0 {
			fmt.Fprintf(w, "%s\t%d\n", m.Name, m.Generation)
		}
	}
	return w.Flush()
}

func rotationText(r *trust.Rotation, now time.Time) string {
	if r == nil {
		return "none"
	}
	means := map[trust.Phase]string{
		trust.PhaseAdd:     "members begin to trust the new one",
		trust.PhaseUse:     "members begin to use the new one",
		trust.PhaseOverlap: "both are trusted, the new one is in use; end it with skiff certs rotate-ca --finish",
	}[r.Phase]
	return fmt.Sprintf("%s for %s: %s", r.Phase, days(now.Sub(r.Since)), means)
}

// expiry is a date and how far off it is.
func expiry(t, now time.Time) string {
	if now.After(t) {
		return fmt.Sprintf("EXPIRED %s ago", days(now.Sub(t)))
	}
	return fmt.Sprintf("%s (%s)", t.UTC().Format(time.DateOnly), days(t.Sub(now)))
}

// days is a duration as people say it.
func days(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return d.Round(time.Second).String()
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 2*365*day:
		return fmt.Sprintf("%dd", d/day)
	}
	return fmt.Sprintf("%dy", d/(365*day))
}
