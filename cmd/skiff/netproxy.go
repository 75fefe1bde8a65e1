package main

import (
	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/netproxy"
)

func netproxyCommand() *cli.Command {
	return &cli.Command{
		Name:  "netproxy",
		Usage: "look into this host's service proxy",
		Subcommands: []*cli.Command{{
			Name:        "dump",
			Usage:       "print the services and their endpoints as the kernel has them",
			Description: "nft list (up to 1.0.6) aborts on skiff's maps; this reads them as well, and no skiff need run.",
			Action: func(c *cli.Context) error {
				if err := noArgs(c); err != nil {
					return err
				}
				if err := needRoot("skiff netproxy dump"); err != nil {
					return err
				}
				return netproxy.Dump(c.App.Writer, netproxy.Config{})
			},
		}},
	}
}
