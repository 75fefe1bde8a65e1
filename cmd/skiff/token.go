package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/membership"
)

func tokenCommand() *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "make tokens with which hosts join the cluster",
		Subcommands: []*cli.Command{
			{
				Name:  "create",
				Usage: "make a token and print it, the only time that it is shown",
				Flags: clientFlags(
					&cli.StringFlag{Name: "role", Usage: "what the hosts become: server (or witness) or agent", Value: string(membership.RoleAgent), EnvVars: env("role")},
					&cli.DurationFlag{Name: "ttl", Usage: "how long the token is good for; 0 is for ever", Value: membership.DefaultTokenTTL, EnvVars: env("ttl")},
					&cli.StringFlag{Name: "description", Usage: "what it is for, shown by skiff token list"},
					outputFlag(),
				),
				Action: createToken,
			},
			{
				Name:   "list",
				Usage:  "show the tokens that admit hosts, without their secrets",
				Flags:  clientFlags(outputFlag()),
				Action: listTokens,
			},
			{
				Name:      "delete",
				Usage:     "make tokens useless; hosts that joined with them stay",
				ArgsUsage: "ID...",
				Flags:     clientFlags(),
				Action: func(c *cli.Context) error {
					ids, err := argsAndFlags(c)
					if err != nil {
						return err
					}
					if len(ids) == 0 {
						return usagef("name at least one token by its ID; see skiff token list")
					}
					for _, id := range ids {
						if t, err := membership.ParseToken(id); err == nil {
							id = t.ID // the secret has no business in an address
						}
						if err := exchange(c, http.MethodDelete, membership.TokensPath+"/"+url.PathEscape(id), nil, nil); err != nil {
							return err
						}
						fmt.Fprintf(c.App.Writer, "token %s deleted\n", id)
					}
					return nil
				},
			},
		},
	}
}

// exchange sends in, if it is not nil, and reads the answer into out, if that is
// not nil.
func exchange(c *cli.Context, method, path string, in, out any) error {
	resp, err := callSkiff(c, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

func createToken(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	req := membership.TokenRequest{Role: membership.Role(c.String("role")), TTL: c.Duration("ttl"), Description: c.String("description")}
	switch {
	case req.Role == membership.RoleWitness:
		req.Role = membership.RoleServer // it is the witness itself that says so
	case req.Role != membership.RoleServer && req.Role != membership.RoleAgent:
		return usagef("--role is %q, want server or agent", req.Role)
	}
	if req.TTL < 0 || req.TTL > 0 && req.TTL < time.Second {
		return usagef("--ttl %s: want 1s or more, or 0 for a token that never expires", req.TTL)
	}
	var t membership.NewToken
	if err := exchange(c, http.MethodPost, membership.TokensPath, req, &t); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(t)
	}
	_, err = fmt.Fprintln(c.App.Writer, t.Token)
	return err
}

func listTokens(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	var list []membership.TokenInfo
	if err := exchange(c, http.MethodGet, membership.TokensPath, nil, &list); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(list)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tROLE\tCREATED\tEXPIRES\tDESCRIPTION")
	for _, t := range list {
		expires := "never"
		if t.Expires != nil {
			expires = t.Expires.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Role, t.Created.Format(time.RFC3339), expires, t.Description)
	}
	return w.Flush()
}
