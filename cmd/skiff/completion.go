package main

import (
	"fmt"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionScripts ask the binary itself for candidates: skiff completes
// every command line that ends in --generate-bash-completion.
var completionScripts = map[string]string{
	"bash": `_skiff_complete() {
  local cur="${COMP_WORDS[COMP_CWORD]}"
  local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ "$cur" == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _skiff_complete skiff
`,
	"zsh": `#compdef skiff
_skiff_complete() {
  local cur="${words[CURRENT]}"
  local -a line candidates
  line=("${words[@]:0:$((CURRENT-1))}")
  [[ "$cur" == -* ]] && line+=("$cur")
  candidates=("${(@f)$("${line[@]}" --generate-bash-completion 2>/dev/null)}")
  compadd -- "${candidates[@]}" || _files
}
compdef _skiff_complete skiff
`,
	"fish": `function __skiff_complete
  set -l line (commandline -opc)
  set -l cur (commandline -ct)
  string match -q -- '-*' $cur; and set line $line $cur
  $line --generate-bash-completion 2>/dev/null
end
complete -c skiff -f -a '(__skiff_complete)'
`,
}

func completionCommand() *cli.Command {
	shells := make([]string, 0, len(completionScripts))
	for s := range completionScripts {
		shells = append(shells, s)
	}
	sort.Strings(shells)
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script, to be sourced by the shell",
		ArgsUsage: strings.Join(shells, "|"),
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return usagef("skiff completion takes one of %s", strings.Join(shells, ", "))
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}
