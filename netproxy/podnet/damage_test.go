package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/skiff-sh/skiff/fsm/damage"
	"github.com/skiff-sh/skiff/netproxy/nstest"
)

// TestLostLeases: pods that run keep address and link when the file with the
// addresses is damaged, and others get none of theirs.
func TestLostLeases(t *testing.T) {
	nstest.Run(t, func(t *testing.T) {
		n := newTestNode(t, nil, "127.0.0.1", "10.42.3.0/24")
		a, ip := n.pod("a")
		_, ipB := n.pod("b")
		before, err := netlink.LinkByName(LinkName("a"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(n.cfg.Dir, "leases.json")
		if err := os.Truncate(path, 30); err != nil {
			t.Fatal(err)
		}
		again, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := again.SetPodCIDR(netip.MustParsePrefix("10.42.3.0/24")); err != nil {
			t.Fatal(err)
		}
		if err := again.Prepare(); err != nil {
			t.Fatal(err)
		}
		c, err := again.Attach(t.Context(), "c", nstest.New(t).Path())
		if err != nil || c[0].String() == ip || c[0].String() == ipB {
			t.Errorf("a new pod gets %v, %v", c, err)
		}
		got, err := again.Attach(t.Context(), "a", a.Path())
		if err != nil || got[0].String() != ip {
			t.Errorf("the pod gets %v, %v; it had %s", got, err, ip)
		}
		if after, err := netlink.LinkByName(LinkName("a")); err != nil || after.Attrs().Index != before.Attrs().Index {
			t.Errorf("its link was replaced: %v", err)
		}
		if _, err := nstest.Ask(nil, "tcp4", ip+":8080"); err != nil {
			t.Error(err)
		}
	})
}

// TestDamagedLeases: a damaged file is noticed, or says the same.
func TestDamagedLeases(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := openLeases(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.setRange(netip.MustParsePrefix("10.42.7.0/24"))
	for i := range 3 {
		if _, err := l.take(fmt.Sprint("pod-", i)); err != nil {
			t.Fatal(err)
		}
	}
	l.release("pod-1")
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "leases.json"))
	if err != nil {
		t.Fatal(err)
	}
	cases, err := damage.Cases(dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range cases {
		if d.What == "deleted" {
			continue
		}
		other := t.TempDir()
		if err := os.WriteFile(filepath.Join(other, "leases.json"), want, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(other); err != nil {
			t.Fatal(err)
		}
		if got, err := openLeases(other); err == nil && !(reflect.DeepEqual(got.Pods, l.Pods) && got.Next == l.Next && got.Range == l.Range) {
			t.Errorf("%s: it is read: %+v", d, got)
		}
	}
}
