package membership

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm/golden"
)

func goldenCluster() *Cluster {
	return &Cluster{ClusterID: "abcdefghijklmnopqrstuvwxyz", Generation: 3, JoinedCA: []byte{1, 2, 3}, GossipKeys: [][]byte{{4, 5}, {6}},
		Settings: Settings{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), ClusterDomain: "cluster.local", PodEvictionTimeout: 5 * time.Minute},
		Servers:  []Server{{Name: "one", ID: "aaaaaaaaaaaaaaaa", Address: netip.MustParseAddr("192.0.2.1"), APIPort: 6443, RaftPort: 6444, GossipPort: 6445}}}
}

// TestGoldenAgent reads the data directory of an agent of every release; its
// certificate may have expired since.
func TestGoldenAgent(t *testing.T) {
	if golden.Update(t) {
		dir := golden.Fresh(t, "agent")
		n := joined(t, newBench(t), "n1", "abcdefgh")
		if err := os.CopyFS(filepath.Join(dir, "agent"), os.DirFS(n.c.Dir)); err != nil {
			t.Fatal(err)
		}
		if err := SaveCluster(dir, goldenCluster()); err != nil {
			t.Fatal(err)
		}
	}
	golden.Each(t, "agent", func(t *testing.T, dir string) {
		data := golden.Copy(t, dir)
		i, err := OpenIdentity(IdentityConfig{Dir: filepath.Join(data, "agent"), NodeID: "abcdefgh", Address: func() string { return "10.0.0.9" }, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if !i.Joined() || i.c.Name != "n1" || len(i.CA()) == 0 {
			t.Errorf("it is %q, joined: %v", i.c.Name, i.Joined())
		}
		if _, err := i.Certificate(); err != nil {
			t.Error(err)
		}
		got, err := LoadCluster(data)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(goldenCluster()) || !reflect.DeepEqual(got.Servers, goldenCluster().Servers) {
			t.Errorf("cluster.json: %+v, %v", got, err)
		}
	})
}
