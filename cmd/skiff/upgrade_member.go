package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
)

// upgradeKey is the public key, as minisign writes it, with which programs for
// upgrades have to be signed; a build may set it.
var upgradeKey string

func upgradeKeyFlag() cli.Flag {
	return stringFlag("upgrade-key-file", "file with the public keys of minisign, a line each: this host takes only binaries that one of them has signed (default: those of the build, if it has any)", "")
}

// parseUpgradeKeys reads --upgrade-key-file, or what the build has.
func parseUpgradeKeys(c *cli.Context) (binary.Keys, error) {
	path := c.String("upgrade-key-file")
	if path == "" {
		keys, err := binary.ParseKeys(upgradeKey)
		if err != nil {
			return nil, fmt.Errorf("this build's key for upgrades: %w", err)
		}
		return keys, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("--upgrade-key-file: %v", err)
	}
	keys, err := binary.ParseKeys(string(b))
	if err == nil && len(keys) == 0 {
		err = errors.New("it holds no key")
	}
	if err != nil {
		return nil, usagef("--upgrade-key-file %s: %v", path, err)
	}
	return keys, nil
}

// guardCommand is what skiff calls itself with while a new program is on trial.
func guardCommand() *cli.Command {
	return &cli.Command{
		Name:      guardName,
		Usage:     "watch over the trial of a new program (for skiff itself)",
		ArgsUsage: "FOLDER PROGRAM ARGS...",
		Hidden:    true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "before-start", Usage: "only count a start, and go back if there were too many (for systemd)"},
		},
		Action: func(c *cli.Context) error {
			log, err := newLogger(os.Stderr, "text", 0)
			if err != nil {
				return err
			}
			log = log.With("component", "upgrade")
			if c.Bool("before-start") {
				if c.Args().Len() != 1 {
					return usagef("want the folder of programs")
				}
				return binary.BeforeStart(c.Args().First(), log)
			}
			if c.Args().Len() < 2 {
				return usagef("this command is for skiff itself")
			}
			// What ends skiff from a terminal is skiff's to answer.
			return binary.Guard(context.WithoutCancel(c.Context), c.Args().First(), c.Args().Tail(), log)
		},
	}
}

const guardName = "upgrade-guard"

// openUpgrades goes on with a switch of programs, if there is one. The data
// directory is locked. An *binary.Exec as the error asks for another program.
func openUpgrades(o hostOptions) (*binary.Store, *binary.Executor, error) {
	store, err := binary.OpenStore(binary.StoreConfig{Dir: binary.Dir(o.dataDir), Keys: o.upgradeKeys})
	if err != nil {
		return nil, nil, err
	}
	e, err := binary.New(binary.Config{Store: store, Version: version, Args: os.Args, GuardArgs: []string{guardName},
		Logger: o.logger.With("component", "upgrade")})
	return store, e, err
}

// allOf gives a channel that is closed when all are.
func allOf(ctx context.Context, all ...<-chan struct{}) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		for _, c := range all {
			select {
			case <-c:
			case <-ctx.Done():
				return
			}
		}
		close(out)
	}()
	return out
}

// bell rings when there may be something new; it is never missed by who listens
// next.
type bell chan struct{}

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// runServerUpgrades carries out the orders to this host, a server.
func runServerUpgrades(ctx context.Context, e *binary.Executor, server *cluster.Server, healthy []<-chan struct{}) error {
	orders, changed := server.Orders(), make(bell, 1)
	go orders.Follow(ctx, changed.ring)
	return e.Run(ctx, allOf(ctx, healthy...), orders, changed)
}
