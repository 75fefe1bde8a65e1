package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/membership"
)

func memberCommand() *cli.Command {
	return &cli.Command{
		Name:  "member",
		Usage: "show and change who belongs to the cluster",
		Subcommands: []*cli.Command{
			{
				Name:  "list",
				Usage: "show the members",
				Flags: clientFlags(outputFlag()),
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					asJSON, err := wantJSON(c)
					if err != nil {
						return err
					}
					var members []membership.MemberStatus
					if err := exchange(c, http.MethodGet, membership.MembersPath, nil, &members); err != nil {
						return err
					}
					if asJSON {
						return json.NewEncoder(c.App.Writer).Encode(members)
					}
					return printMembers(c.App.Writer, members, time.Now())
				},
			},
			{
				Name:      "remove",
				Usage:     "end the membership of a host, dead or alive",
				ArgsUsage: "NAME",
				Description: "The certificates of the host are refused from then on. Its node is deleted, its pods are replaced by\n" +
					"their controllers; pods without one are lost. Move them away before with skiff kubectl drain.",
				Flags: clientFlags(outputFlag(), forceFlag()),
				Action: func(c *cli.Context) error {
					name, err := oneMember(c)
					if err != nil {
						return err
					}
					asJSON, err := wantJSON(c)
					if err != nil {
						return err
					}
					path := membership.MembersPath + "/" + url.PathEscape(name)
					if c.Bool("force") {
						path += "?force=true"
					}
					var r membership.Removed
					if err := exchange(c, http.MethodDelete, path, nil, &r); err != nil {
						return err
					}
					return printRemoved(c, &r, asJSON)
				},
			},
			{
				Name:      "promote",
				Usage:     "make a server vote that has caught up, without waiting until that happens by itself",
				ArgsUsage: "NAME",
				Flags:     clientFlags(),
				Action: func(c *cli.Context) error {
					name, err := oneMember(c)
					if err != nil {
						return err
					}
					if err := exchange(c, http.MethodPost, membership.MembersPath+"/"+url.PathEscape(name)+"/promote", nil, nil); err != nil {
						return err
					}
					_, err = fmt.Fprintf(c.App.Writer, "server %s votes\n", name)
					return err
				},
			},
		},
	}
}

func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "also when the next loss of a server would then stop writes"}
}

// oneMember is the one argument of a command.
func oneMember(c *cli.Context) (string, error) {
	args, err := argsAndFlags(c)
	if err != nil {
		return "", err
	}
	if len(args) != 1 || strings.Contains(args[0], "/") {
		return "", usagef("name one member; see skiff member list")
	}
	return args[0], nil
}

// argsAndFlags gives the arguments, and sets the flags that come after the first
// of them, which the library takes for arguments.
func argsAndFlags(c *cli.Context) ([]string, error) {
	var args []string
	for rest := c.Args().Slice(); len(rest) > 0; rest = rest[1:] {
		name, value, hasValue := strings.Cut(strings.TrimLeft(rest[0], "-"), "=")
		if !strings.HasPrefix(rest[0], "-") {
			args = append(args, rest[0])
			continue
		}
		i := slices.IndexFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
		if i < 0 {
			return nil, usagef("flag provided but not defined: %s; see skiff help %s", rest[0], c.Command.Name)
		}
		if _, isBool := c.Command.Flags[i].(*cli.BoolFlag); isBool && !hasValue {
			value = "true"
		} else if !hasValue {
			if len(rest) < 2 {
				return nil, usagef("flag needs an argument: %s", rest[0])
			}
			value, rest = rest[1], rest[1:]
		}
		if err := c.Set(c.Command.Flags[i].Names()[0], value); err != nil {
			return nil, usagef("invalid value %q for flag %s: %v", value, rest[0], err)
		}
	}
	return args, nil
}

func printRemoved(c *cli.Context, r *membership.Removed, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(r)
	}
	fmt.Fprintf(c.App.Writer, "%s %s removed\n", r.Role, r.Name)
	for _, n := range r.Notes {
		fmt.Fprintf(c.App.Writer, "  %s\n", n)
	}
	return nil
}

func leaveCommand() *cli.Command {
	return &cli.Command{
		Name:  "leave",
		Usage: "end the membership of this host",
		Description: "Pods are not moved away before: see skiff kubectl drain. What runs here goes on until skiff is stopped\n" +
			"and skiff reset --delete-data is run, after which the host can join again.",
		Flags: clientFlags(outputFlag(), forceFlag()),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			r, err := leave(c)
			if err != nil {
				return err
			}
			return printRemoved(c, r, asJSON)
		},
	}
}

// leave asks as the node itself where an agent runs, else as an administrator.
func leave(c *cli.Context) (*membership.Removed, error) {
	dir := c.String("data-dir")
	b, err := os.ReadFile(filepath.Join(dir, "node-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this host is no member: there is no %s; name its data directory with --data-dir", filepath.Join(dir, "node-id"))
	}
	if err != nil {
		return nil, fmt.Errorf("identity of this host: %w", err)
	}
	id := strings.TrimSpace(string(b))
	agent := filepath.Join(dir, "agent")
	if _, err := os.Stat(filepath.Join(agent, membership.CertFile)); err == nil {
		return leaveAsNode(c.Context, dir, agent, id)
	}
	var r membership.Removed
	q := url.Values{"id": {id}}
	if c.Bool("force") {
		q.Set("force", "true")
	}
	return &r, exchange(c, http.MethodPost, membership.LeavePath+"?"+q.Encode(), nil, &r)
}

func leaveAsNode(ctx context.Context, dataDir, agentDir, id string) (*membership.Removed, error) {
	known, err := membership.LoadCluster(dataDir)
	if err != nil {
		return nil, err
	}
	if known == nil || len(known.Servers) == 0 {
		return nil, fmt.Errorf("the servers are not known here: %s is missing; remove this node on a server with skiff member remove", membership.ClusterFile)
	}
	identity, err := membership.OpenIdentity(membership.IdentityConfig{Dir: agentDir, NodeID: id, Address: func() string { return "" },
		Logger: slog.New(slog.DiscardHandler), Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
			dialer := net.Dialer{Timeout: 5 * time.Second}
			for _, s := range known.Servers {
				if conn, err = dialer.DialContext(ctx, network, s.API()); err == nil {
					return conn, nil
				}
			}
			return nil, fmt.Errorf("no server answers: %w", err)
		}})
	if err != nil {
		return nil, err
	}
	return identity.Leave(ctx)
}
