package podnet

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/skiff-sh/skiff/netproxy/nstest"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
)

func benchNode(b *testing.B) *Network {
	b.Helper()
	nstest.Isolate(b)
	dns, services := netip.MustParseAddr("10.43.0.10"), netip.MustParsePrefix("10.43.0.0/16")
	table := ruleset.New("skiff", ruleset.Params{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR: services, DNSAddr: dns, HostAddr: Gateway}, slog.Default())
	b.Cleanup(func() { table.Close() })
	if _, err := table.Ensure(); err != nil {
		b.Fatal(err)
	}
	n, err := New(Config{NodeIP: netip.MustParseAddr("127.0.0.1"), ServiceCIDR: services, DNSAddr: dns,
		Domain: "cluster.local", Dir: b.TempDir(), Table: table, Logger: slog.Default()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(n.Close)
	if err := n.SetPodCIDR(netip.MustParsePrefix("10.42.0.0/16")); err != nil {
		b.Fatal(err)
	}
	if err := n.Prepare(); err != nil {
		b.Fatal(err)
	}
	return n
}

func BenchmarkAttach(b *testing.B) {
	n := benchNode(b)
	for b.Loop() {
		b.StopTimer()
		ns := nstest.New(b)
		b.StartTimer()
		if _, err := n.Attach(b.Context(), "p", ns.Path()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := n.Detach(b.Context(), "p"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkDetach(b *testing.B) {
	n := benchNode(b)
	for b.Loop() {
		b.StopTimer()
		ns := nstest.New(b)
		if _, err := n.Attach(b.Context(), "p", ns.Path()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := n.Detach(b.Context(), "p"); err != nil {
			b.Fatal(err)
		}
	}
}
