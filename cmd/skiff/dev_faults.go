package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cmd/dev"
)

var devSignals = map[string]unix.Signal{"KILL": unix.SIGKILL, "TERM": unix.SIGTERM, "STOP": unix.SIGSTOP, "CONT": unix.SIGCONT}

func devKillCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "kill skiff on a node, or cut the node's power",
		ArgsUsage: "NODE",
		Flags: []cli.Flag{
			devDirFlag(),
			&cli.StringFlag{Name: "signal", Usage: "KILL, TERM, STOP (pause) or CONT (go on)", Value: "KILL"},
			&cli.BoolFlag{Name: "host", Usage: "every process of the node, pods too; with KILL a power cut: memory and link are gone, the disk is kept"},
		},
		Action: func(c *cli.Context) error {
			args, err := devArgs(c, 1, "name one node")
			if err != nil {
				return err
			}
			sig, ok := devSignals[strings.TrimPrefix(strings.ToUpper(c.String("signal")), "SIG")]
			if !ok {
				return usagef("--signal %q: want KILL, TERM, STOP or CONT", c.String("signal"))
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			return cluster.Kill(c.Context, args[0], dev.KillOptions{Signal: sig, Host: c.Bool("host")})
		},
	}
}

func devStartCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "start skiff on a node again; a node without data joins anew",
		ArgsUsage: "NODE",
		Flags: []cli.Flag{
			devDirFlag(),
			&cli.StringFlag{Name: "binary", Usage: "replace the node's program first (default: the one that it had)"},
		},
		Action: func(c *cli.Context) error {
			args, err := devArgs(c, 1, "name one node")
			if err != nil {
				return err
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			if c.IsSet("binary") {
				if err := cluster.Install(c.Context, args[0], c.String("binary")); err != nil {
					return err
				}
			}
			return cluster.Start(c.Context, args[0])
		},
	}
}

func devPartitionCommand() *cli.Command {
	return &cli.Command{
		Name:        "partition",
		Usage:       "let nothing pass between nodes, their pods' packets included",
		ArgsUsage:   "A[,B...] C[,D...]",
		Description: "Names are nodes, or " + dev.Machine + " for this machine. Partitions add up until skiff dev heal.",
		Flags: []cli.Flag{
			devDirFlag(),
			&cli.BoolFlag{Name: "one-way", Usage: "only from the first to the second"},
		},
		Action: func(c *cli.Context) error {
			args, err := devArgs(c, 2, "name two sides, such as server-1 server-2,server-3")
			if err != nil {
				return err
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			return cluster.Partition(c.Context, strings.Split(args[0], ","), strings.Split(args[1], ","), c.Bool("one-way"))
		},
	}
}

func devHealCommand() *cli.Command {
	return &cli.Command{
		Name:  "heal",
		Usage: "end all partitions and let stalled disks go on",
		Flags: []cli.Flag{devDirFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			return cluster.Heal(c.Context)
		},
	}
}

func devStallCommand() *cli.Command {
	return &cli.Command{
		Name:      "stall-disk",
		Usage:     "let every write to a node's disk hang, until heal, start or kill",
		ArgsUsage: "NODE",
		Flags: []cli.Flag{
			devDirFlag(),
			&cli.DurationFlag{Name: "for", Usage: "wait so long, then let it go on"},
		},
		Action: func(c *cli.Context) error {
			args, err := devArgs(c, 1, "name one node")
			if err != nil {
				return err
			}
			limit := c.Duration("for")
			if limit < 0 || c.IsSet("for") && limit == 0 {
				return usagef("--for %v: want a time such as 10s", limit)
			}
			cluster, err := openDev(c)
			if err != nil {
				return err
			}
			node := args[0]
			if err := cluster.Stall(c.Context, node); err != nil || limit == 0 {
				return err
			}
			fmt.Fprintf(c.App.Writer, "the disk of %s is stalled for %v; Ctrl-C ends that\n", node, limit)
			select {
			case <-c.Context.Done():
			case <-time.After(limit):
			}
			thaw, cancel := context.WithTimeout(context.WithoutCancel(c.Context), time.Minute)
			defer cancel()
			return errors.Join(cluster.Thaw(thaw, node), c.Context.Err())
		},
	}
}

// devHoldCommand is what skiff dev up starts to make namespaces.
func devHoldCommand() *cli.Command {
	return &cli.Command{
		Name:   dev.HoldCommand[1],
		Hidden: true,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return dev.Hold(os.Stdin, os.Stdout)
		},
	}
}
