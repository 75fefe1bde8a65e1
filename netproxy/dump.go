package netproxy

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/skiff-sh/skiff/netproxy/ruleset"
)

// Dump writes what is in the kernel's table: each frontend with its owner, how
// it chooses, and its endpoints in slot order, then host ports and affinity
// entries. It needs no running skiff. Only TableName of the config is used.
//
// nft itself is no help here: nft 1.0.6 aborts on rules that keep a
// concatenation in registers.
func Dump(w io.Writer, cfg Config) error {
	name := cmp.Or(cfg.TableName, DefaultTableName)
	t := ruleset.New(name, ruleset.Params{}, slog.New(slog.DiscardHandler))
	defer t.Close()
	s, err := t.Load()
	if err != nil {
		return fmt.Errorf("dump table %s: %w", name, err)
	}
	affinity, err := t.Affinity()
	if err != nil {
		return fmt.Errorf("dump table %s: %w", name, err)
	}

	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SERVICE\tFRONTEND\tFOR\tOPTIONS\tENDPOINTS")
	row := func(k ruleset.Key, f ruleset.Frontend, who string) {
		owner := cmp.Or(s.Owners[k], "-")
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", owner, k, who, options(f.Picker), slots(s.Lists[f.List], f.Count))
	}
	for _, k := range sortedKeys(s.Frontends) {
		row(k, s.Frontends[k], "all")
	}
	for _, k := range sortedKeys(s.External) {
		row(k, s.External[k], "outside")
	}
	for _, set := range ruleset.FlagSets {
		for _, k := range sortedKeys(s.Flags[set]) {
			who, what := "all", "dropped: no local endpoint"
			switch set {
			case ruleset.SetReject:
				what = "rejected: no endpoint"
			case ruleset.SetDropExternal:
				who = "outside"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t-\t%s\n", cmp.Or(s.Owners[k], "-"), k, who, what)
		}
	}
	for _, k := range sortedKeys(s.HostPorts) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t-\t%s\n", "(host port)", k, "all", s.HostPorts[k])
	}
	if len(affinity) > 0 {
		fmt.Fprintln(tw, "\nCLIENT\tENDPOINT\tFORGOTTEN IN")
		slices.SortFunc(affinity, func(a, b ruleset.AffinityEntry) int { return a.Client.Compare(b.Client) })
		for _, a := range affinity {
			fmt.Fprintf(tw, "%s\t%s\t%s\n", a.Client, a.Endpoint, a.Expires)
		}
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("dump table %s: %w", name, err)
	}
	return nil
}

func sortedKeys[V any](m map[ruleset.Key]V) []ruleset.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b ruleset.Key) int {
		return cmp.Or(netip.AddrFrom4(a.Addr).Compare(netip.AddrFrom4(b.Addr)), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
	})
}

func options(p ruleset.Picker) string {
	var out []string
	if p.Opts&ruleset.OptMasquerade != 0 {
		out = append(out, "masquerade")
	}
	if a := p.Affinity(); a != 0 {
		out = append(out, fmt.Sprintf("affinity=%ds", a))
	}
	return cmp.Or(strings.Join(out, ","), "-")
}

func slots(list map[int]ruleset.Endpoint, count uint32) string {
	var out []string
	for i := range int(count) {
		if ep, ok := list[i]; ok {
			out = append(out, ep.String())
		} else {
			out = append(out, "(empty slot)")
		}
	}
	return strings.Join(out, " ")
}
