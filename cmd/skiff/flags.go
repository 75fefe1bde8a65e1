package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst puts the flags of a command line before its other arguments, as the
// library needs it; people write skiff snapshot save FILE --endpoints E. What
// follows -- stays, and so does the line of a command that runs another.
func flagsFirst(app *cli.App, args []string) []string {
	commands := app.Commands
	var c *cli.Command
	at := 1
	for ; at < len(args) && len(commands) > 0; at++ {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[at]) })
		if i < 0 {
			return args
		}
		c = commands[i]
		commands = c.Subcommands
	}
	if c == nil || len(commands) > 0 || c.SkipFlagParsing || strings.Contains(c.ArgsUsage, "--") ||
		args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	out, others := slices.Clone(args[:at]), []string{}
	for rest := args[at:]; len(rest) > 0; {
		n := 1
		switch {
		case rest[0] == "--":
			n = len(rest)
			others = append(others, rest[1:]...)
		case len(rest[0]) < 2 || rest[0][0] != '-':
			others = append(others, rest[0])
		default:
			if takesValue(c.Flags, rest[0]) && len(rest) > 1 {
				n = 2
			}
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	if len(others) == 0 {
		return args
	}
	return append(append(out, "--"), others...)
}

// takesValue says whether a flag's value is the next argument. Of one that is not
// known the library says that.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}
