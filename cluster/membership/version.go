package membership

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade/skew"
	"github.com/skiff-sh/skiff/fsm"
)

// Program is what a host says of its skiff.
type Program struct {
	Version string `json:"version"`
	// Feature levels that it works at; 0, of the first versions, is 1.
	MinLevel int `json:"minLevel,omitempty"`
	MaxLevel int `json:"maxLevel,omitempty"`
}

// ThisProgram is the running one, of which only the version can vary.
func ThisProgram(version string) Program {
	return Program{Version: version, MinLevel: fsm.MinLevel, MaxLevel: fsm.MaxLevel}
}

// checkProgram refuses a host whose program does not work in this cluster, with
// what to run instead. id is the host's.
func (s *Service) checkProgram(role Role, name, id string, p Program) error {
	self := s.c.Self()
	others := []skew.Member{{Name: self.Name, Server: true, Version: s.c.Version}}
	for _, o := range s.c.Peers() {
		if o.State == Alive && o.ID != id && o.ID != self.ID && !s.Removed(o.ID) {
			others = append(others, skew.Member{Name: o.Name, Server: o.Role.Votes(), Version: o.Version})
		}
	}
	if err := skew.Join(skew.Member{Name: name, Server: role.Votes(), Version: p.Version}, others); err != nil {
		return refuse(http.StatusConflict, "%v", err)
	}
	level := fsm.LevelOf(s.c.Store.View())
	switch {
	case max(p.MaxLevel, 1) < level:
		return refuse(http.StatusConflict, "the cluster is at feature level %d, and skiff %s on this host works up to %d: install skiff %s here", level, p.Version, max(p.MaxLevel, 1), s.c.Version)
	case p.MinLevel > level:
		return refuse(http.StatusConflict, "the cluster is at feature level %d, and skiff %s on this host works from %d on: finish the upgrade of the cluster first (skiff upgrade finalize), or install skiff %s here", level, p.Version, p.MinLevel, s.c.Version)
	}
	return nil
}

const (
	// newsTakes is how long gossip may take to tell of the program of another
	// member that has just started, in an upgrade that goes from one to the next.
	// Less than leaderTimeout, within which a server that starts wants its answer.
	newsTakes = 1500 * time.Millisecond
	newsPoll  = 100 * time.Millisecond
)

// unfit says why the program of a member that has started does not work here;
// "" if it does, or nothing is known of it. It says so when that has been true
// for newsTakes.
func (s *Service) unfit(ctx context.Context, id string, q url.Values) (why string) {
	for end := time.Now().Add(newsTakes); ; {
		if why = s.unfitNow(id, q); why == "" || time.Now().After(end) {
			return why
		}
		select {
		case <-ctx.Done():
			return why
		case <-time.After(newsPoll):
		}
	}
}

func (s *Service) unfitNow(id string, q url.Values) string {
	p := Program{Version: q.Get("version")}
	p.MinLevel, _ = strconv.Atoi(q.Get("minLevel"))
	p.MaxLevel, _ = strconv.Atoi(q.Get("maxLevel"))
	if p.Version == "" {
		return ""
	}
	for name, r := range s.records() {
		if r.ID == id {
			if err := s.checkProgram(r.Role, name, id, p); err != nil {
				return err.Error()
			}
		}
	}
	return ""
}

// query is the Program as unfit reads it.
func (p Program) query() string {
	return fmt.Sprintf("&version=%s&minLevel=%d&maxLevel=%d", url.QueryEscape(p.Version), p.MinLevel, p.MaxLevel)
}

// versionWarnings say that members run different versions, and that the feature
// level could be raised.
func versionWarnings(st *Status) (out []string) {
	names, highest, alive := map[string][]string{}, 0, 0
	for _, m := range st.Members {
		if m.State != Alive || m.Version == "" {
			continue
		}
		names[m.Version] = append(names[m.Version], m.Name)
		if alive++; alive == 1 || max(m.MaxLevel, 1) < highest {
			highest = max(m.MaxLevel, 1)
		}
	}
	switch {
	case len(names) > 1:
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(names)) {
			of := strings.Join(names[v], ", ")
			if n := len(names[v]); n > 5 {
				of = fmt.Sprintf("%d members", n)
			}
			parts = append(parts, fmt.Sprintf("%s (%s)", v, of))
		}
		out = append(out, "members run different versions: "+strings.Join(parts, ", "))
	case highest > st.FeatureLevel && st.Upgrade == "":
		out = append(out, fmt.Sprintf("the feature level is %d, and the programs of all members know %d: skiff upgrade finalize raises it, after which there is no way back to the version before", st.FeatureLevel, highest))
	}
	return out
}
