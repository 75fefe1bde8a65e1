package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestLeases(t *testing.T) {
	dir := t.TempDir()
	l, err := openLeases(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.setRange(netip.MustParsePrefix("10.42.7.0/29"))
	take := func(uid, want string) {
		t.Helper()
		le, err := l.take(uid)
		if err != nil {
			t.Fatalf("%s: %v", uid, err)
		}
		if le.Addr.String() != want {
			t.Errorf("%s: got %s, want %s", uid, le.Addr, want)
		}
	}
	take("a", "10.42.7.2") // .0 is the tunnel's, .1 the node's
	take("b", "10.42.7.3")
	take("a", "10.42.7.2") // again the same
	l.release("a")
	take("c", "10.42.7.4") // never-used ones first
	l.release("c")
	take("d", "10.42.7.5")
	take("e", "10.42.7.6")
	take("f", "10.42.7.2") // then the longest free
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if l, err = openLeases(dir); err != nil {
		t.Fatal(err)
	}
	take("f", "10.42.7.2")
	take("g", "10.42.7.4")
	if _, err := l.take("h"); !errors.Is(err, errNoAddress) { // .7 is the broadcast address
		t.Errorf("full range: %v", err)
	}
	l.release("unknown")

	// Another range: pods keep what they have.
	l.setRange(netip.MustParsePrefix("10.42.8.0/24"))
	take("b", "10.42.7.3")
	take("h", "10.42.8.2")
	l.release("b")
	for i := range 252 {
		if i == 251 {
			break
		}
		if le, err := l.take(fmt.Sprint("n", i)); err != nil || !l.Range.Contains(le.Addr) {
			t.Fatalf("address %d: %v, %v", i, le, err)
		}
	}
	if le := l.Pods["n250"]; le.Addr.String() != "10.42.8.253" {
		t.Errorf("last address: %s", le.Addr)
	}
}

func TestLeasesFileDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "leases.json"), []byte(`{"range":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLeases(dir); err == nil {
		t.Error("a damaged file is accepted")
	}
}

func TestLinkName(t *testing.T) {
	a, b := LinkName("4b7b3c5e-3a1e-4bd0-9d3e-0d3c6d1f2a11"), LinkName("4b7b3c5e-3a1e-4bd0-9d3e-0d3c6d1f2a12")
	if a == b || len(a) != 14 || a[:5] != "skiff" || a != LinkName("4b7b3c5e-3a1e-4bd0-9d3e-0d3c6d1f2a11") {
		t.Errorf("%s %s", a, b)
	}
}

func TestPortMappingValidate(t *testing.T) {
	for _, c := range []struct {
		p  PortMapping
		ok bool
	}{
		{PortMapping{HostPort: 80, ContainerPort: 80}, true},
		{PortMapping{HostPort: 80, ContainerPort: 80, Protocol: "SCTP"}, true},
		{PortMapping{HostPort: 80, ContainerPort: 80, Protocol: "ICMP"}, false},
		{PortMapping{ContainerPort: 80}, false},
		{PortMapping{HostPort: 80}, false},
		{PortMapping{HostPort: 80, ContainerPort: 80, HostIP: netip.MustParseAddr("::1")}, false},
	} {
		if err := c.p.validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.p, err)
		}
	}
}
