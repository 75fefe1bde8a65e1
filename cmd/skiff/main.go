// Command skiff is a whole Kubernetes cluster in one binary: API server,
// replicated store, scheduler, controllers, node agent, service proxy and DNS,
// and kubectl.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
)

// Exit codes that scripts may rely on.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// Under the name kubectl or k the binary is nothing else.
	if name := filepath.Base(os.Args[0]); name == "kubectl" || name == "k" {
		os.Exit(runKubectl(os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args)
	stop()
	var other *binary.Exec
	switch {
	case errors.Is(err, errAgain):
		err = runAgain()
	case errors.As(err, &other):
		err = other.Run()
	}
	if err == nil {
		return
	}
	var exit cli.ExitCoder
	if errors.As(err, &exit) {
		if msg := exit.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, "skiff: "+msg)
		}
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "skiff: "+err.Error())
	os.Exit(exitFailed)
}

// run executes one command line. Errors that carry exitUsage mean that the
// command was used wrongly; nothing was done then.
func run(ctx context.Context, args []string) error {
	return newApp().RunContext(ctx, args)
}

func newApp() *cli.App {
	app := &cli.App{
		Name:                   "skiff",
		Usage:                  "a whole Kubernetes cluster in one binary",
		HideVersion:            true,
		EnableBashCompletion:   true,
		UseShortOptionHandling: true,
		Commands: []*cli.Command{
			serverCommand(),
			agentCommand(),
			kubectlCommand(),
			snapshotCommand(),
			restoreCommand(),
			imageCommand(),
			statusCommand(),
			upgradeCommand(),
			certsCommand(),
			encryptionCommand(),
			tokenCommand(),
			memberCommand(),
			leaveCommand(),
			recoverCommand(),
			netproxyCommand(),
			devCommand(),
			resetCommand(),
			installCommand(),
			uninstallCommand(),
			versionCommand(),
			guardCommand(),
			completionCommand(),
		},
		CommandNotFound: func(_ *cli.Context, name string) {
			fmt.Fprintf(os.Stderr, "skiff: there is no command %q; see skiff help\n", name)
			os.Exit(exitUsage)
		},
		OnUsageError:   usageError,
		ExitErrHandler: func(*cli.Context, error) {}, // main prints once
	}
	refuseWrongUse(app.Commands)
	return app
}

// refuseWrongUse makes every command answer a wrong flag in one line.
func refuseWrongUse(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		refuseWrongUse(c.Subcommands)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	return usagef("%v; see skiff help %s", err, c.Command.Name)
}

// usagef is the error of a command that was used wrongly.
func usagef(format string, args ...any) error {
	return cli.Exit(fmt.Sprintf(format, args...), exitUsage)
}

// noArgs refuses stray arguments, which are most often a mistyped flag.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		return usagef("unexpected argument %q; see skiff help %s", c.Args().First(), c.Command.Name)
	}
	return nil
}
