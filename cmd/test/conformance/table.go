package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

type sum struct{ ran, passed, skipped int }

func (s *sum) add(t result) {
	switch t.State {
	case skipped:
		s.skipped++
		return
	case passed:
		s.passed++
	}
	s.ran++
}

// printTable prints the areas and, below, each failure with its cause. It says
// whether all that ran has passed, and that something has.
func printTable(out io.Writer, list []result, wanted int) bool {
	areas := map[string]*sum{}
	var names []string
	var total sum
	for _, t := range list {
		if areas[t.Area] == nil {
			areas[t.Area] = &sum{}
			names = append(names, t.Area)
		}
		areas[t.Area].add(t)
		total.add(t)
	}
	slices.Sort(names)
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(name string, s sum) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", name, s.ran, s.passed, s.ran-s.passed, s.skipped)
	}
	fmt.Fprintln(w, "AREA\tRUN\tPASSED\tFAILED\tSKIPPED")
	for _, n := range names {
		line(n, *areas[n])
	}
	line("all", total)
	w.Flush()
	if total.ran > 0 {
		fmt.Fprintf(out, "\n%.1f %% of %d passed\n", 100*float64(total.passed)/float64(total.ran), total.ran)
	}
	if missing := wanted - len(list); missing > 0 {
		fmt.Fprintf(out, "%d have not run\n", missing)
	}
	for _, state := range []string{failed, skipped} {
		title := strings.ToUpper(state[:1]) + state[1:] + ":"
		for _, t := range list {
			if t.State != state {
				continue
			}
			if title != "" {
				fmt.Fprintln(out, "\n"+title)
				title = ""
			}
			fmt.Fprintf(out, "  %s\n      %s\n", t.Name, t.Cause)
		}
	}
	return total.ran > 0 && total.passed == total.ran
}
