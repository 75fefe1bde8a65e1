package trust

import (
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm/store"
)

// recordPrefix is where package membership has a record of every member, by its
// name.
const recordPrefix = "/skiff/members/"

// settleTime is how long after its start a server may not have heard of all that
// are alive.
const settleTime = 15 * time.Second

// members are those that gossip knows, and those that it does not: it forgets
// who was dead when this process started. They have installed nothing as far as
// is known. In the beginning they may be alive.
func (t *Trust) members() []Member {
	out := t.cfg.Members()
	known := map[string]bool{t.cfg.Name: true}
	for _, m := range out {
		known[m.Name] = true
	}
	settling := time.Since(t.began) < t.cfg.Settle
	t.cfg.Store.View().Ascend(recordPrefix, "", func(kv *store.KeyValue) bool {
		if name := strings.TrimPrefix(kv.Key, recordPrefix); !known[name] {
			out = append(out, Member{Name: name, Alive: settling})
		}
		return true
	})
	return out
}
