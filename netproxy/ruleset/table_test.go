package ruleset

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/skiff-sh/skiff/netproxy/nstest"
)

func testParams() Params {
	return Params{
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		DNSAddr: netip.MustParseAddr("10.43.0.10"), HostAddr: netip.MustParseAddr("192.168.7.1"), Mark: DefaultMark,
	}
}

func TestTableRoundTrip(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		tab := New("skiff", testParams(), slog.Default())
		defer tab.Close()
		if changed, err := tab.Ensure(); err != nil || !changed {
			t.Fatalf("first Ensure: changed %v, %v", changed, err)
		}

		list := NewListID("default", "web", "http")
		key := NewKey(netip.MustParseAddr("10.43.0.20"), 6, 80)
		node := NewKey(netip.Addr{}, 6, 30080)
		ep := []Endpoint{{[4]byte{10, 42, 0, 5}, 8080}, {[4]byte{10, 42, 0, 6}, 8080}}
		fe := Frontend{list, Picker{Count: 2, Opts: 10800}}
		fn := Frontend{list, Picker{Count: 2, Opts: OptMasquerade | OptNodePort}}
		fx := Frontend{list, Picker{Count: 1, Opts: OptNodePort | OptExternal}}
		u := &Unit{}
		u.SetFrontend(SetFrontends, key, nil, &fe, "default/web:http")
		u.SetFrontend(SetFrontends, node, nil, &fn, "default/web:http")
		u.SetFrontend(SetExternal, node, nil, &fx, "default/web:http")
		u.SetSlot(list, 0, nil, &ep[0])
		u.SetSlot(list, 1, nil, &ep[1])
		u.Member(list, ep[0], true)
		u.Flag(SetReject, NewKey(netip.MustParseAddr("10.43.0.21"), 17, 53), true)
		u.SetHostPort(NewKey(netip.Addr{}, 6, 8443), nil, &ep[0])
		u.Hairpin(ep[0].Addr, true)
		if err := tab.Apply([]*Unit{u}); err != nil {
			t.Fatal(err)
		}

		want := &State{
			Frontends: map[Key]Frontend{key: fe, node: fn},
			External:  map[Key]Frontend{node: fx},
			Owners:    map[Key]string{key: "default/web:http", node: "default/web:http"},
			Lists:     map[ListID]map[int]Endpoint{list: {0: ep[0], 1: ep[1]}},
			Members:   map[ListID]map[Endpoint]bool{list: {ep[0]: true}},
			Flags: map[string]map[Key]bool{SetReject: {NewKey(netip.MustParseAddr("10.43.0.21"), 17, 53): true},
				SetDrop: {}, SetDropExternal: {}},
			HostPorts: map[Key]Endpoint{NewKey(netip.Addr{}, 6, 8443): ep[0]},
			Hairpin:   map[netip.Addr]bool{netip.MustParseAddr("10.42.0.5"): true},
		}
		again := New("skiff", testParams(), slog.Default())
		defer again.Close()
		if changed, err := again.Ensure(); err != nil || changed {
			t.Fatalf("second Ensure: changed %v, %v", changed, err)
		}
		got, err := again.Load()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("loaded state (-want +got):\n%s", d)
		}

		// Replacing in one transaction.
		u = &Unit{}
		u.SetSlot(list, 0, &ep[0], &ep[1])
		if err := again.Apply([]*Unit{u}); err != nil {
			t.Fatal(err)
		}
		if got, err = again.Load(); err != nil || got.Lists[list][0] != ep[1] {
			t.Fatalf("slot after replacement: %v, %v", got.Lists[list][0], err)
		}
	})
}

func TestEnsureRepairsAndUpgrades(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		tab := New("skiff", testParams(), slog.Default())
		defer tab.Close()
		if _, err := tab.Ensure(); err != nil {
			t.Fatal(err)
		}
		u := &Unit{}
		key := NewKey(netip.MustParseAddr("10.43.0.20"), 6, 80)
		u.SetFrontend(SetFrontends, key, nil, &Frontend{1, Picker{Count: 3}}, "")
		if err := tab.Apply([]*Unit{u}); err != nil {
			t.Fatal(err)
		}
		gen, err := Generation()
		if err != nil {
			t.Fatal(err)
		}

		// Another version's chain, and a rule that somebody deleted.
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		conn.AddChain(&nftables.Chain{Table: tab.table, Name: "old"})
		conn.FlushChain(&nftables.Chain{Table: tab.table, Name: "services"})
		conn.FlushChain(&nftables.Chain{Table: tab.table, Name: "pick1-3"})
		// A verdict map of another layout, pointing to that chain.
		oldMap := &nftables.Set{Table: tab.table, Name: "pickers0", IsMap: true, KeyType: nftables.TypeMark, DataType: nftables.TypeVerdict}
		if err := conn.AddSet(oldMap, []nftables.SetElement{{Key: []byte{1, 0, 0, 0}, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: "old"}}}); err != nil {
			t.Fatal(err)
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		if upgrade, err := tab.EnsureSets(); err != nil || !upgrade {
			t.Fatalf("sets of another layout: upgrade %v, %v", upgrade, err)
		}
		if now, err := Generation(); err != nil || now == gen {
			t.Fatalf("generation stays %d, %v", now, err)
		}
		if changed, err := tab.Ensure(); err != nil || !changed {
			t.Fatalf("Ensure after damage: changed %v, %v", changed, err)
		}
		have, err := tab.kernelChains()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range append(Chains(tab.params), PickerChain(Picker{Count: 3}, tab.params.Mark)) {
			if !sameChain(c, have[c.Name]) {
				t.Errorf("chain %s was not repaired", c.Name)
			}
			delete(have, c.Name)
		}
		if len(have) > 0 {
			t.Errorf("chains left: %v", have)
		}
		if s, err := tab.Load(); err != nil || len(s.Frontends) != 1 {
			t.Fatalf("elements are lost: %v, %v", s, err)
		}

		// New parameters replace rules only.
		p := testParams()
		p.HostAddr = netip.MustParseAddr("192.168.7.2")
		moved := New("skiff", p, slog.Default())
		defer moved.Close()
		if changed, err := moved.Ensure(); err != nil || !changed {
			t.Fatalf("Ensure with another host address: changed %v, %v", changed, err)
		}
		if err := Remove("skiff"); err != nil {
			t.Fatal(err)
		}
		if err := Remove("skiff"); err != nil {
			t.Fatalf("second Remove: %v", err)
		}
		tables, err := conn.ListTables()
		if err != nil || len(tables) != 0 {
			t.Fatalf("tables left: %v, %v", tables, err)
		}
	})
}
