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
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/servers"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "recover",
		Usage: "go on with the servers that are left, when most are lost for good",
		Description: "Run it on the surviving server with the most log, running or stopped. Its log goes on in a new epoch with\n" +
			"this server alone; the other survivors join it by themselves, workloads are not touched. Lost servers that\n" +
			"come back are refused; --rejoin, run on such a host, gives up its log and lets it join again.",
		Flags: clientFlags(outputFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "show what is known and what may be lost, do nothing", EnvVars: env("dry-run")},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")},
			&cli.BoolFlag{Name: "rejoin", Usage: "give up this host's log and join the cluster that goes on without it"},
			&cli.BoolFlag{Name: "force", Usage: "also where another server has more of the log, or a quorum answers"},
			&cli.StringFlag{Name: "passphrase-file", Usage: "file with the passphrase of the cluster key, if it has one and the server is stopped", EnvVars: env("passphrase-file")},
		),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			r, err := newRecovery(c)
			if err != nil {
				return err
			}
			defer r.close()
			return r.run(c, asJSON)
		},
	}
}

// recovery is `skiff recover` of a server, through its API or on its files.
type recovery struct {
	plan  func(ctx context.Context) (epoch.Plan, error)
	do    func(ctx context.Context, p epoch.Plan) error
	await func(ctx context.Context, p epoch.Plan) error
	close func()
}

func newRecovery(c *cli.Context) (*recovery, error) {
	if c.String("endpoints") != "" || c.String("kubeconfig") != "" {
		return liveRecovery(c)
	}
	dir := c.String("data-dir")
	server, err := exists(dir, "pki", pki.CACertFile)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if !server {
		if agent, _ := exists(dir, "agent", membership.CertFile); agent {
			return nil, fmt.Errorf("this host is an agent (%s): it follows the servers by itself; recover on a server", dir)
		}
		return nil, fmt.Errorf("%s is not the data directory of a server: name it with --data-dir", dir)
	}
	lock, err := consensus.LockDir(dir)
	if errors.Is(err, consensus.ErrLocked) {
		// Not the kubeconfig of the environment: it may name another server first.
		if err := c.Set("kubeconfig", filepath.Join(dir, "admin.kubeconfig")); err != nil {
			return nil, err
		}
		return liveRecovery(c)
	}
	if err != nil {
		return nil, err
	}
	return stoppedRecovery(c, dir, lock)
}

func stoppedRecovery(c *cli.Context, dir string, lock *consensus.DirLock) (*recovery, error) {
	passphrase, err := seal.ReadPassphrase(c.String("passphrase-file"))
	if err != nil {
		lock.Unlock()
		return nil, usagef("--passphrase-file: %v", err)
	}
	s, err := cluster.OpenStopped(c.Context, dir, passphrase)
	if err != nil {
		lock.Unlock()
		return nil, err
	}
	return &recovery{
		plan: func(context.Context) (epoch.Plan, error) { return s.Plan(c.Bool("rejoin")), nil },
		// What was begun is finished even if this is interrupted.
		do: func(ctx context.Context, p epoch.Plan) error {
			return s.Do(context.WithoutCancel(ctx), p, c.Bool("force"))
		},
		await: func(context.Context, epoch.Plan) error {
			fmt.Fprintf(os.Stderr, "done; start the server: skiff server --data-dir %s\n", dir)
			return nil
		},
		close: lock.Unlock,
	}, nil
}

// liveRecovery asks the server of this host, or the one that is named: of others
// it would be about their logs.
func liveRecovery(c *cli.Context) (*recovery, error) {
	config, list, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	if c.String("endpoints") != "" && len(list) != 1 {
		return nil, usagef("--endpoints: name the one server whose log goes on")
	}
	address := list[0].Address
	if c.String("endpoints") == "" {
		if address, err = serverAddress(config.Host); err != nil {
			return nil, err
		}
	}
	client, err := clientOf(config, address)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	for _, flag := range []string{"rejoin", "force"} {
		if c.Bool(flag) {
			q.Set(flag, strconv.FormatBool(true))
		}
	}
	path := cluster.RecoverPath + "?" + q.Encode()
	var planned epoch.Plan
	return &recovery{
		plan: func(ctx context.Context) (p epoch.Plan, err error) {
			return p, callServer(ctx, client, http.MethodGet, path, &p)
		},
		do: func(ctx context.Context, _ epoch.Plan) error {
			return callServer(ctx, client, http.MethodPost, path, &planned)
		},
		await: func(ctx context.Context, _ epoch.Plan) error { return awaitEpoch(ctx, client, planned) },
		close: client.CloseIdleConnections,
	}, nil
}

// clientOf reaches one server only.
func clientOf(config *rest.Config, address string) (*http.Client, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, usagef("%v", err)
	}
	transport := servers.Transport(tlsConfig)
	transport.Proxy = http.ProxyFromEnvironment
	rt, err := rest.HTTPWrappersForConfig(config, transport)
	if err != nil {
		return nil, usagef("%v", err)
	}
	return &http.Client{Transport: servers.New("", servers.Server{Address: address}).Wrap(rt)}, nil
}

func callServer(ctx context.Context, client *http.Client, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, servers.Host+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the server does not answer: %w; stop it and try again, then its files are worked on", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusConflict {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if err != nil {
			return err
		}
		return errors.New(string(trimEnd(b)))
	}
	if resp.StatusCode/100 != 2 {
		return answerError(resp)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

func trimEnd(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

const (
	recoverPatience = 2 * time.Minute
	recoverPoll     = 250 * time.Millisecond
)

// awaitEpoch waits until the server has come back in its new epoch.
func awaitEpoch(ctx context.Context, client *http.Client, p epoch.Plan) error {
	began := time.Now()
	for {
		var s cluster.Status
		err := callServer(ctx, client, http.MethodGet, cluster.StatusPath, &s)
		switch {
		case err == nil && s.Epoch.Same(p.Next) && s.Leader != "":
			fmt.Fprintf(os.Stderr, "done after %s: %s, led by %s\n", time.Since(began).Round(100*time.Millisecond), s.Epoch, s.Leader)
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted: the server goes on with it by itself; see skiff status")
		case time.Since(began) > recoverPatience:
			return fmt.Errorf("the server has not come back in %s after %s; it goes on by itself: see its log, and skiff status", p.Next, recoverPatience)
		}
		select {
		case <-time.After(recoverPoll):
		case <-ctx.Done():
		}
	}
}

func (r *recovery) run(c *cli.Context, asJSON bool) error {
	p, err := r.plan(c.Context)
	if err != nil {
		return err
	}
	rejoin := c.Bool("rejoin")
	if asJSON {
		err = json.NewEncoder(c.App.Writer).Encode(p)
	} else {
		err = printPlan(c.App.Writer, &p, rejoin, time.Now())
	}
	if err != nil {
		return err
	}
	if p.Refused != "" {
		return errors.New(p.Refused)
	}
	if len(p.Doubts) > 0 && !c.Bool("force") {
		return fmt.Errorf("%s; --force goes on all the same", p.Doubts[0])
	}
	if c.Bool("dry-run") {
		return nil
	}
	if !c.Bool("yes") {
		question := fmt.Sprintf("Go on with the log of %s, without the others?", p.Server)
		if rejoin {
			question = fmt.Sprintf("Give up the log of %s?", p.Server)
		}
		if err := confirm(c, question); err != nil {
			return err
		}
	}
	if err := r.do(c.Context, p); err != nil {
		if c.Context.Err() != nil {
			return fmt.Errorf("interrupted: it is not known whether the server has begun; see skiff recover --dry-run (%w)", err)
		}
		return err
	}
	return r.await(c.Context, p)
}

// printPlan shows what is known and what is lost.
func printPlan(out io.Writer, p *epoch.Plan, rejoin bool, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintf(w, "Server\t%s\n", p.Server)
	fmt.Fprintf(w, "Log\tends with entry %d of term %d, %s\n", p.Index, p.Term, p.Epoch)
	switch {
	case p.Refused != "":
	case rejoin:
		fmt.Fprintf(w, "Joins\tserver %s, %s\n", p.Target, p.Next)
	default:
		fmt.Fprintf(w, "Begins\tepoch %d, with this server alone; %d other survivors follow by themselves\n", p.Next.Number, len(p.Next.Followers))
	}
	for _, l := range p.Losses {
		fmt.Fprintf(w, "LOSS\t%s\n", l)
	}
	for _, d := range p.Doubts {
		fmt.Fprintf(w, "DOUBT\t%s\n", d)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "SERVER\tVOTES\tANSWERS\tLAST ENTRY\tTERM\tSEEN\tNOTE")
	for _, m := range p.Members {
		last, term, seen, note := "?", "?", "?", m.Problem
		if m.Answers {
			last, term = fmt.Sprint(m.Index), fmt.Sprint(m.Term)
		}
		if m.Seen != nil {
			seen = now.Sub(*m.Seen).Round(time.Second).String() + " ago"
		}
		switch {
		case m.Self:
			seen, note = "now", "this server"
		case m.Answers:
			seen = "now"
		}
		if m.Epoch != nil {
			note = "has " + m.Epoch.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, yesNo(m.Voter), yesNo(m.Answers), last, term, seen, note)
	}
	return w.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
