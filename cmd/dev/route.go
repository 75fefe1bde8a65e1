package dev

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	forwarding     = "/proc/sys/net/ipv4/ip_forward"
	forwardingMark = runDir + "/forwarding" // we switched it on
)

// routeOut lets the nodes reach what this machine reaches, under its address:
// to pull images. A firewall of this machine that drops what is forwarded (as
// Docker's does) has to be told by the user.
func (p place) routeOut(s *state) error {
	b, err := os.ReadFile(forwarding)
	if err != nil {
		return err
	}
	if string(bytes.TrimSpace(b)) == "0" {
		if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
			return fmt.Errorf("switch forwarding on: %w", err)
		}
		if err := os.WriteFile(forwardingMark, nil, 0o600); err != nil {
			return err
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Name: p.table(), Family: nftables.TableFamilyIPv4})
	conn.DelTable(table)
	table = conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	link := ifname(p.uplink())
	// ip saddr SUBNET oifname != UPLINK masquerade
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 255, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: s.Subnet.Addr().AsSlice()},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: link},
		&expr.Masq{},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("rules for the way out: %w", err)
	}
	return nil
}

func (p place) removeRoute() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Name: p.table(), Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the rules for the way out: %w", err)
	}
	return nil
}

// stopForwarding switches forwarding off after the last cluster, if the first
// one switched it on.
func (p place) stopForwarding() error {
	if _, err := os.Stat(forwardingMark); err != nil {
		return nil
	}
	others, err := os.ReadDir(runDir)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.IsDir() && o.Name() != p.id {
			return nil
		}
	}
	return errors.Join(os.WriteFile(forwarding, []byte("0"), 0), os.Remove(forwardingMark))
}
