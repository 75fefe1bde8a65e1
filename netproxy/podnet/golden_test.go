package podnet

import (
	"net/netip"
	"testing"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// TestGoldenLeases reads the pod addresses of every release.
func TestGoldenLeases(t *testing.T) {
	if golden.Update(t) {
		l, err := openLeases(golden.Fresh(t, "network"))
		if err != nil {
			t.Fatal(err)
		}
		l.setRange(netip.MustParsePrefix("10.42.7.0/24"))
		for _, uid := range []string{"a", "b", "c"} {
			if _, err := l.take(uid); err != nil {
				t.Fatal(err)
			}
		}
		l.Pods["a"].Ports = []PortMapping{{Protocol: "TCP", HostPort: 80, ContainerPort: 8080}}
		l.release("b")
		if err := l.save(); err != nil {
			t.Fatal(err)
		}
	}
	golden.Each(t, "network", func(t *testing.T, dir string) {
		l, err := openLeases(golden.Copy(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Pods) != 2 || l.Pods["a"].Addr.String() != "10.42.7.2" || l.Pods["a"].Ports[0].HostPort != 80 || len(l.Freed) != 1 || l.Next.String() != "10.42.7.5" {
			t.Errorf("%+v", l)
		}
	})
}
