package dev

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Machine names this machine among the parties of a partition.
const Machine = "host"

// Partition lets nothing pass any more from a node of from to one of to, and
// unless oneWay the other way round too. It adds to the partitions that are in
// force.
func (c *Cluster) Partition(ctx context.Context, from, to []string, oneWay bool) error {
	return c.change(ctx, func(s *state) error {
		if len(from) == 0 || len(to) == 0 {
			return errors.New("a partition has two sides")
		}
		for _, name := range slices.Concat(from, to) {
			if _, err := s.port(name); err != nil {
				return err
			}
		}
		add := func(cut Cut) {
			if !slices.Contains(s.Cuts, cut) {
				s.Cuts = append(s.Cuts, cut)
			}
		}
		for _, a := range from {
			for _, b := range to {
				if a == b {
					return fmt.Errorf("%s is on both sides of the partition", a)
				}
				add(Cut{a, b})
				if !oneWay {
					add(Cut{b, a})
				}
			}
		}
		return c.p.applyCuts(s)
	})
}

// Heal ends all partitions and lets stalled disks go on.
func (c *Cluster) Heal(ctx context.Context) error {
	return c.change(ctx, func(s *state) error {
		s.Cuts = nil
		errs := []error{c.p.applyCuts(s)}
		for _, n := range s.Nodes {
			errs = append(errs, c.p.thawNode(n.Name))
		}
		return errors.Join(errs...)
	})
}

// port names the bridge's port of a party.
func (s *state) port(name string) (string, error) {
	if name == Machine {
		return hostPort, nil
	}
	n, err := s.node(name)
	return port(n.Index), err
}

// applyCuts puts the rules of all partitions in place at once.
func (p place) applyCuts(s *state) error {
	ns, err := netns.GetFromPath(p.pin(switchNode, "net"))
	if err != nil {
		return fmt.Errorf("the bridge is gone: %w; start again with skiff dev down and up", err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Name: "partition", Family: nftables.TableFamilyBridge})
	conn.DelTable(table)
	if len(s.Cuts) > 0 {
		table = conn.AddTable(table)
		// To and from this machine's port frames are forwarded like any others.
		chain := conn.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		for _, cut := range s.Cuts {
			from, err := s.port(cut.From)
			if err != nil {
				return err
			}
			to, err := s.port(cut.To)
			if err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(from)},
				&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(to)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	if err := conn.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("rules of the bridge: %w: this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE, modprobe nf_tables_bridge)", err)
		}
		return fmt.Errorf("rules of the bridge: %w", err)
	}
	return nil
}

// ifname is a name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
