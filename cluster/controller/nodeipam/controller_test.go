package nodeipam

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/cluster/controller/controllertest"
)

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		cluster string
		taken   []string
		want    string
	}{
		{"10.42.0.0/16", nil, "10.42.0.0/24"},
		{"10.42.0.0/16", []string{"10.42.0.0/24", "10.42.2.0/24"}, "10.42.1.0/24"},
		{"10.42.0.0/16", []string{"10.42.0.0/22"}, "10.42.4.0/24"},
		{"10.42.0.0/16", []string{"10.42.0.128/25"}, "10.42.1.0/24"},
		{"10.42.7.0/24", []string{"10.42.7.0/24"}, ""},
		{"255.255.254.0/23", []string{"255.255.254.0/24", "255.255.255.0/24"}, ""},
		{"10.42.0.0/16", []string{"192.168.0.0/16"}, "10.42.0.0/24"},
	} {
		var taken []netip.Prefix
		for _, s := range tc.taken {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		got, ok := choose(netip.MustParsePrefix(tc.cluster), taken)
		if ok != (tc.want != "") || ok && got.String() != tc.want {
			t.Errorf("choose(%s, %v) = %v, %v; want %q", tc.cluster, tc.taken, got, ok, tc.want)
		}
	}
}

func TestNoRangeTwice(t *testing.T) {
	c := controllertest.New(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "old"},
		Spec: corev1.NodeSpec{PodCIDR: "10.42.1.0/24", PodCIDRs: []string{"10.42.1.0/24"}}})
	ctl, err := New(Config{Config: c.Config, ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	c.Run(t, ctl.Run)
	for i := range 30 {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}}
		if _, err := c.Client.CoreV1().Nodes().Create(context.Background(), n, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	controllertest.Eventually(t, func() string {
		list, err := c.Client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		seen := map[string]string{}
		for _, n := range list.Items {
			if n.Spec.PodCIDR == "" {
				return n.Name + " has none"
			}
			if other, twice := seen[n.Spec.PodCIDR]; twice {
				t.Fatalf("%s and %s share %s", other, n.Name, n.Spec.PodCIDR)
			}
			seen[n.Spec.PodCIDR] = n.Name
		}
		return ""
	})
	c.Settles(t, 50*time.Millisecond)
}

func TestConfig(t *testing.T) {
	c := controllertest.New(t)
	for _, cidr := range []string{"10.42.0.0/25", "fd00::/48"} {
		if _, err := New(Config{Config: c.Config, ClusterCIDR: netip.MustParsePrefix(cidr)}); err == nil {
			t.Errorf("accepted %s", cidr)
		}
	}
}
