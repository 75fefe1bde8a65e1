package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/node/shutdown"
)

const (
	shutdownGrace         = "shutdown-grace-period"
	shutdownGraceCritical = "shutdown-grace-period-critical-pods"
	shutdownGraceBy       = "shutdown-grace-period-by-pod-priority"

	defaultShutdownGrace         = 30 * time.Second
	defaultShutdownGraceCritical = 10 * time.Second
)

// shutdownFlags are about pods on a machine that is shut down.
func shutdownFlags() []cli.Flag {
	duration := func(name, usage string, value time.Duration) cli.Flag {
		return &cli.DurationFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
	}
	return []cli.Flag{
		duration(shutdownGrace, "how long a shutdown of this machine waits for its pods, by systemd-logind; 0 for no time at all", defaultShutdownGrace),
		duration(shutdownGraceCritical, "the last part of that, which is for pods of system priority", defaultShutdownGraceCritical),
		listFlag(shutdownGraceBy, "PRIORITY=TIME that pods from this priority on get, in place of the two above"),
	}
}

// parseShutdown reads shutdownFlags.
func parseShutdown(c *cli.Context) (shutdown.Periods, error) {
	if list := c.StringSlice(shutdownGraceBy); len(list) > 0 {
		for _, f := range []string{shutdownGrace, shutdownGraceCritical} {
			if c.IsSet(f) {
				return nil, usagef("--%s and --%s: give one of the two", shutdownGraceBy, f)
			}
		}
		p, err := shutdown.ParsePeriods(list)
		if err != nil {
			return nil, usagef("--%s %v", shutdownGraceBy, err)
		}
		return p, nil
	}
	total, critical := c.Duration(shutdownGrace), c.Duration(shutdownGraceCritical)
	if !c.IsSet(shutdownGraceCritical) {
		critical = min(critical, max(0, total))
	}
	p, err := shutdown.TwoPeriods(total, critical)
	if err != nil {
		return nil, usagef("--%s, --%s: %v", shutdownGrace, shutdownGraceCritical, err)
	}
	return p, nil
}
