// Package page reads a page of documentation as a script: its console blocks,
// in order, are commands with the output that the page promises.
//
// In a block fenced as console, a line HOST# COMMAND or HOST$ COMMAND runs a
// command on a host; the lines up to the next one are what it prints. A command
// may end in "# 1.2 s", which says how long it takes. It must succeed, unless the
// page shows a line that begins as errors of skiff and kubectl do. Comments <!-- test: WORDS -->
// outside of blocks are directives to the test: what happens to hosts, what must
// hold. A block fenced as "yaml NAME" is a file of that name, which lies in the
// folder of the host that runs the next command.
//
// Output matches if it is the same but for numbers, times, sizes, random names
// and the width of gaps; names of hosts (server-1, agent-1), versions and
// addresses must be the same. "…" stands for any text in a line, a line of its own for
// any number of lines.
package page

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Step is one command or directive.
type Step struct {
	Line    int    // in the file
	Section string // the last heading of the second level

	// A command:
	Host    string
	Command string        // empty for a directive
	Took    time.Duration // what the page says; 0: nothing
	Output  []string
	Fails   bool // the page shows how it fails

	// A directive:
	Directive []string

	// A file, for Host:
	File, Content string
}

func (s Step) String() string {
	if s.File != "" {
		return fmt.Sprintf("line %d: file %s", s.Line, s.File)
	}
	if s.Command == "" {
		return fmt.Sprintf("line %d: test: %s", s.Line, strings.Join(s.Directive, " "))
	}
	return fmt.Sprintf("line %d: %s# %s", s.Line, s.Host, s.Command)
}

var (
	prompt    = regexp.MustCompile(`^([a-z][a-z0-9-]*)[#$] (.+)$`)
	took      = regexp.MustCompile(`\s+# ([0-9.]+) s$`)
	directive = regexp.MustCompile(`^<!-- test: (.+) -->$`)
	failure   = regexp.MustCompile(`^(skiff: |error: |Error from server|The \w+ "[^"]*" is invalid|command terminated with exit code)`)
	fileName  = regexp.MustCompile(`^yaml ([a-z0-9][a-z0-9.-]*)$`)
)

// Read reads the page in a file.
func Read(path string) ([]Step, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var steps []Step
	section, fence := "", "" // fence: the info string of the block that we are in, or -
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		wrong := func(what string) ([]Step, error) { return nil, fmt.Errorf("%s:%d: %s: %q", path, n, what, line) }
		switch info, isFence := strings.CutPrefix(line, "```"); {
		case isFence && fence == "":
			if fence = info; fence == "" {
				fence = "-"
			}
			if strings.HasPrefix(info, "console") && info != "console" {
				return wrong("a console block has nothing else beside its name")
			}
			if m := fileName.FindStringSubmatch(info); m != nil {
				steps = append(steps, Step{Line: n, Section: section, File: m[1]})
			}
		case isFence:
			fence = ""
		case fence == "console":
			m := prompt.FindStringSubmatch(line)
			if m == nil {
				if len(steps) == 0 || steps[len(steps)-1].Command == "" || steps[len(steps)-1].Section != section {
					return wrong("output without a command")
				}
				last := &steps[len(steps)-1]
				last.Output = append(last.Output, line)
				last.Fails = last.Fails || failure.MatchString(line)
				continue
			}
			s := Step{Line: n, Section: section, Host: m[1], Command: m[2]}
			if t := took.FindStringSubmatchIndex(s.Command); t != nil {
				seconds, err := strconv.ParseFloat(s.Command[t[2]:t[3]], 64)
				if err != nil {
					return wrong("no time")
				}
				s.Took, s.Command = time.Duration(seconds*float64(time.Second)), s.Command[:t[0]]
			}
			for i := len(steps) - 1; i >= 0 && steps[i].File != "" && steps[i].Host == ""; i-- {
				steps[i].Host = s.Host
			}
			steps = append(steps, s)
		case fileName.MatchString(fence):
			steps[len(steps)-1].Content += line + "\n"
		case fence != "":
		case strings.HasPrefix(line, "## "):
			section = strings.TrimPrefix(line, "## ")
		case strings.Contains(line, "<!-- test"):
			m := directive.FindStringSubmatch(line)
			if m == nil {
				return wrong("a directive stands alone, as <!-- test: WORDS -->")
			}
			steps = append(steps, Step{Line: n, Section: section, Directive: strings.Fields(m[1])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if fence != "" {
		return nil, fmt.Errorf("%s: a block is not closed", path)
	}
	for _, s := range steps {
		if s.File != "" && s.Host == "" {
			return nil, fmt.Errorf("%s:%d: no command follows file %s", path, s.Line, s.File)
		}
	}
	return steps, nil
}
