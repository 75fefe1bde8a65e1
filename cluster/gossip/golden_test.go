package gossip

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// TestGoldenTags reads the tags of members of every release.
func TestGoldenTags(t *testing.T) {
	if golden.Update(t) {
		dir := golden.Fresh(t, "tags")
		for name, tags := range map[string]Tags{
			"server": {ID: "abcdefghijklmnop", Role: RoleServer, ClusterID: "abcdefghijklmnopqrstuvwxyz", Version: golden.Version,
				APIPort: 6443, RaftPort: 6444, NodePort: 10250, Trust: 7, Load: 42, Epoch: 2, EpochHash: 0xfeedbeef, Orders: 3, MinLevel: 1, MaxLevel: 1, Free: 1 << 34},
			"agent": {ID: "qrstuvwxyzabcdef", Role: RoleAgent, ClusterID: "abcdefghijklmnopqrstuvwxyz", Version: golden.Version, NodePort: 10250, Trust: 7, MinLevel: 1, MaxLevel: 1},
		} {
			b, err := encodeTags(tags, name == "agent")
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name+".bin"), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			golden.WriteJSON(t, filepath.Join(dir, name+".json"), tags)
		}
	}
	golden.Each(t, "tags", func(t *testing.T, dir string) {
		for _, name := range []string{"server", "agent"} {
			b, err := os.ReadFile(filepath.Join(dir, name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			want := golden.ReadJSON[Tags](t, filepath.Join(dir, name+".json"))
			got, leaving, err := decodeTags(b)
			if err != nil || got != want || leaving != (name == "agent") {
				t.Errorf("%s: %+v, %v, %v; want %+v", name, got, leaving, err, want)
			}
		}
	})
}
