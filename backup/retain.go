package backup

import (
	"cmp"
	"slices"
	"time"
)

// Retention says how many snapshots stay. Both limits hold; zero is none.
type Retention struct {
	Keep   int           // the newest so many stay
	MaxAge time.Duration // older ones go, whatever Keep says
}

// Named is an Entry with a name that skiff gave.
type Named struct {
	Entry
	Name Name
}

// Ours gives the entries with a name that skiff gave, the newest first; of one
// cluster, unless clusterID is empty. What is newer is told by the revision,
// which never goes back, and by the time where that is the same: a clock that
// was wrong once does no harm.
func Ours(entries []Entry, clusterID string) []Named {
	var out []Named
	for _, e := range entries {
		if n, ok := ParseName(e.Name); ok && (clusterID == "" || n.Cluster == ShortID(clusterID)) {
			out = append(out, Named{e, n})
		}
	}
	slices.SortStableFunc(out, func(a, b Named) int {
		return cmp.Or(cmp.Compare(b.Name.Revision, a.Name.Revision), b.Name.At.Compare(a.Name.At), cmp.Compare(a.Entry.Name, b.Entry.Name))
	})
	return out
}

// Expired gives those that may go, the oldest first. What skiff did not name is
// never among them. Each cluster is counted for itself.
//
// The newest good one of a cluster stays whatever the limits say: good is asked
// from the newest on until it says yes. Where it never does, nothing goes.
func (r Retention) Expired(entries []Entry, now time.Time, good func(Entry) bool) []Entry {
	clusters := map[string][]Named{}
	for _, n := range Ours(entries, "") {
		clusters[n.Name.Cluster] = append(clusters[n.Name.Cluster], n)
	}
	var out []Named
	for _, list := range clusters {
		var gone []Named
		for i, n := range list {
			if r.Keep > 0 && i >= r.Keep || r.MaxAge > 0 && now.Sub(n.Name.At) > r.MaxAge {
				gone = append(gone, n)
			}
		}
		if len(gone) == 0 {
			continue
		}
		i := slices.IndexFunc(list, func(n Named) bool { return good(n.Entry) })
		if i < 0 {
			continue
		}
		out = append(out, slices.DeleteFunc(gone, func(n Named) bool { return n.Entry == list[i].Entry })...)
	}
	slices.SortStableFunc(out, func(a, b Named) int {
		return cmp.Or(a.Name.At.Compare(b.Name.At), cmp.Compare(a.Entry.Name, b.Entry.Name))
	})
	entries = make([]Entry, len(out))
	for i, n := range out {
		entries[i] = n.Entry
	}
	return entries
}
