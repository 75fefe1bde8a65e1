package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/cmd/dev"
)

const defaultDevDir = ".skiff-dev"

func devCommand() *cli.Command {
	return &cli.Command{
		Name:  "dev",
		Usage: "run a whole cluster on this machine, to try skiff and to see it survive",
		Description: "Each node has its own network, mounts, cgroups and disk. Nodes are named server-1, agent-1 and so on;\n" +
			"they go on running after these commands. skiff dev down removes everything.",
		Subcommands: []*cli.Command{
			devUpCommand(), devDownCommand(), devStatusCommand(), devKubeconfigCommand(), devExecCommand(),
			devKillCommand(), devStartCommand(), devPartitionCommand(), devHealCommand(), devStallCommand(), devHoldCommand(),
		},
	}
}

func devDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "data-dir", Usage: "folder of the cluster", Value: defaultDevDir, EnvVars: []string{"SKIFF_DEV_DIR"}}
}

// openDev finds the cluster that the command line means.
func openDev(c *cli.Context) (*dev.Cluster, error) {
	if err := needRoot("skiff dev"); err != nil {
		return nil, err
	}
	return dev.Open(c.String("data-dir"))
}

// devArgs gives the arguments of a command, also where flags come after them:
// skiff dev kill server-1 --host. what names them, want is their number.
func devArgs(c *cli.Context, want int, what string) (args []string, err error) {
	if args, err = argsAndFlags(c); err != nil {
		return nil, err
	}
	if len(args) != want {
		return nil, usagef("%s; see skiff dev status", what)
	}
	return args, nil
}

func devUpCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "make a cluster and wait until its nodes are ready",
		Flags: []cli.Flag{
			devDirFlag(),
			&cli.IntFlag{Name: "servers", Usage: "number of servers", Value: 3},
			&cli.IntFlag{Name: "agents", Usage: "number of agents", Value: 2},
			&cli.IntFlag{Name: "witness", Usage: "number of witnesses: servers that vote and run no pods"},
			&cli.StringSliceFlag{Name: "server-arg", Usage: "further argument of skiff server, such as --server-arg=--v=1"},
			&cli.StringSliceFlag{Name: "agent-arg", Usage: "further argument of skiff agent"},
			&cli.StringFlag{Name: "image-dir", Usage: "folder of image archives that every node loads"},
			&cli.StringFlag{Name: "disk-size", Usage: "size of each node's disk; its file takes only what is used", Value: "12Gi"},
			&cli.BoolFlag{Name: "plain-disks", Usage: "keep the nodes' data in folders: needs no loop devices, and disks cannot be stalled"},
			&cli.StringFlag{Name: "subnet", Usage: "/24 range of the nodes (default: a free one of 10.190.0.0/16)"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := devConfig(c)
			if err != nil {
				return err
			}
			if err := needRoot("skiff dev"); err != nil {
				return err
			}
			cluster, err := dev.Up(c.Context, cfg)
			if err != nil {
				if cluster != nil {
					err = fmt.Errorf("%w\nwhat was made is left for a look; remove it with: skiff dev down --data-dir %s", err, cfg.Dir)
				}
				return err
			}
			path, err := cluster.Kubeconfig(c.Context)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "\nUse it with:\n  export KUBECONFIG=%[1]s\n  %[2]s kubectl get nodes\nBreak it with:\n"+
				"  %[2]s dev kill server-1%[3]s        (see %[2]s dev help)\nRemove it with:\n  %[2]s dev down%[3]s\n", path, os.Args[0], dirArg(cfg.Dir))
			return nil
		},
	}
}

// dirArg is what has to be added to commands on this cluster.
func dirArg(dir string) string {
	if dir == defaultDevDir {
		return ""
	}
	return " --data-dir " + dir
}

func devConfig(c *cli.Context) (cfg dev.Config, err error) {
	if err := noArgs(c); err != nil {
		return cfg, err
	}
	cfg = dev.Config{Dir: c.String("data-dir"), Servers: c.Int("servers"), Agents: c.Int("agents"), Witnesses: c.Int("witness"),
		ServerArgs: c.StringSlice("server-arg"), AgentArgs: c.StringSlice("agent-arg"), ImageDir: c.String("image-dir"), PlainDisks: c.Bool("plain-disks"),
		Progress: func(format string, args ...any) { fmt.Fprintf(c.App.Writer, format+"\n", args...) }}
	switch {
	case cfg.Servers < 1:
		return cfg, usagef("--servers %d: want at least 1", cfg.Servers)
	case cfg.Agents < 0:
		return cfg, usagef("--agents %d: want 0 or more", cfg.Agents)
	case cfg.Witnesses < 0:
		return cfg, usagef("--witness %d: want 0 or more", cfg.Witnesses)
	case cfg.PlainDisks && c.IsSet("disk-size"):
		return cfg, usagef("--disk-size does not go with --plain-disks: folders have no size of their own")
	}
	size, err := resource.ParseQuantity(c.String("disk-size"))
	if err != nil || size.Value() <= 0 {
		return cfg, usagef("--disk-size %q: want a size such as 2Gi", c.String("disk-size"))
	}
	cfg.DiskSize = size.Value()
	if s := c.String("subnet"); s != "" {
		if cfg.Subnet, err = netip.ParsePrefix(s); err != nil || !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() != 24 {
			return cfg, usagef("--subnet %q: want an IPv4 range such as 10.190.7.0/24", s)
		}
	}
	cfg.Binary, err = os.Executable()
	return cfg, err
}

func devDownCommand() *cli.Command {
	return &cli.Command{
		Name:  "down",
		Usage: "remove the cluster: processes, pods, network, disks and data",
		Flags: []cli.Flag{devDirFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := needRoot("skiff dev"); err != nil {
				return err
			}
			found, err := dev.Down(c.Context, c.String("data-dir"))
			if err == nil && !found {
				fmt.Fprintln(c.App.Writer, "no cluster is up here; nothing was removed")
			}
			return err
		},
	}
}

func devStatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the nodes: their processes, disks and partitions",
		Flags: []cli.Flag{devDirFlag(), outputFlag()},
		Action: func(c *cli.Context) error {
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			if err := noArgs(c); err != nil {
				return err
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			s, err := cluster.Status()
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.App.Writer)
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "NODE\tROLE\tADDRESS\tSTATE\tPID\tDISK\tUSED")
			for _, n := range s.Nodes {
				pid := "-"
				if n.PID != 0 {
					pid = fmt.Sprint(n.PID)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d%%\n", n.Name, n.Role, n.Address, n.State, pid, n.Disk, n.DiskUsed)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, cut := range s.Cuts {
				fmt.Fprintf(c.App.Writer, "nothing passes from %s to %s\n", cut.From, cut.To)
			}
			return nil
		},
	}
}

func devKubeconfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "kubeconfig",
		Usage: "write the administrator's kubeconfig anew and print its path",
		Flags: []cli.Flag{devDirFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			path, err := cluster.Kubeconfig(c.Context)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, path)
			return err
		},
	}
}

func devExecCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a command in a node: its network, mounts and cgroups",
		ArgsUsage: "NODE -- COMMAND [ARGUMENT...]",
		Flags:     []cli.Flag{devDirFlag()},
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1], args[2:]...)
			}
			if len(args) < 2 {
				return usagef("want a node and a command: skiff dev exec NODE -- COMMAND")
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			if args[1] == "skiff" {
				args[1] = cluster.Program(args[0])
			}
			cmd := exec.Command(args[1], args[2:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			if err := cluster.Exec(args[0], cmd); err != nil {
				return err
			}
			// Ctrl-C reaches the command by itself; it decides what comes of it.
			err = cmd.Wait()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code := exit.ExitCode()
				if code < 0 {
					return fmt.Errorf("%s: %w", strings.Join(args[1:], " "), err)
				}
				return cli.Exit("", code)
			}
			return err
		},
	}
}
