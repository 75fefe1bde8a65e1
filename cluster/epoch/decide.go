package epoch

import (
	"fmt"
	"time"
)

// Patience is how long a server's log has no leader before the server looks for
// a later epoch: elections are over by then.
const Patience = 10 * time.Second

// Action is what a server does about other epochs.
type Action string

// The actions.
const (
	// Stay as it is.
	Stay Action = "stay"
	// Follow: give up the own log, join the other epoch.
	Follow Action = "follow"
	// KeepOut: the cluster goes on without this server's log, which may hold
	// writes that the others never had. Only an administrator gives it up.
	KeepOut Action = "keep out"
	// Refuse to begin: the cluster whose snapshot was restored here lives.
	Refuse Action = "refuse"
)

// Situation is what Decide looks at.
type Situation struct {
	Self View
	// Unasked: a restored server that has not begun yet.
	Unasked bool
	// Starting: Raft does not run yet.
	Starting bool
	// Leaderless is how long the log has had no leader.
	Leaderless time.Duration
	// Others have answered.
	Others []View
}

// Decision is an Action and why.
type Decision struct {
	Action Action
	// Target is the server that the decision is about, if there is one.
	Target *View
	// Why is for people; empty if nothing is worth a word.
	Why string
}

// Decide is what a server does. It asks nobody and changes nothing.
func Decide(s Situation) Decision {
	var latest, rival *View
	for i := range s.Others {
		o := &s.Others[i]
		if !o.Led || o.ClusterID != s.Self.ClusterID && s.Self.ClusterID != "" && o.ClusterID != "" || o.Server.ID == s.Self.Server.ID && o.Epoch.Same(s.Self.Epoch) {
			continue
		}
		if s.Unasked {
			return Decision{Refuse, o, fmt.Sprintf("the cluster of this snapshot is alive: server %s at %s has a leader%s in %s; to put the snapshot's content into the living cluster use skiff restore --live, and to replace the cluster by this server stop all its servers first",
				o.Server.Name, o.Server.API(), leaderNamed(o.Leader), o.Epoch)}
		}
		switch {
		case o.Epoch.Same(s.Self.Epoch):
			if s.Starting { // it is where this server belongs
				return Decision{Action: Stay}
			}
		case o.Epoch.After(s.Self.Epoch):
			if latest == nil || o.Epoch.After(latest.Epoch) || o.Epoch.Same(latest.Epoch) && o.Server.Name < latest.Server.Name {
				latest = o
			}
		default:
			if rival == nil || o.Server.Name < rival.Server.Name { // the same each time: it is said once
				rival = o
			}
		}
	}
	switch {
	case latest == nil && rival != nil && s.Self.Led:
		return Decision{Stay, rival, fmt.Sprintf("two histories of this cluster are alive: server %s at %s goes on with %s, while this one has the later %s; stop the servers of the one that is wrong, then run skiff recover --rejoin on each of them",
			rival.Server.Name, rival.Server.API(), rival.Epoch, s.Self.Epoch)}
	case latest == nil:
		return Decision{Action: Stay}
	case s.Self.Led:
		return Decision{Stay, latest, fmt.Sprintf("two histories of this cluster are alive: server %s at %s has the later %s, while this one and a quorum go on with %s; stop the servers of the one that is wrong, then run skiff recover --rejoin on each of them",
			latest.Server.Name, latest.Server.API(), latest.Epoch, s.Self.Epoch)}
	case !s.Starting && s.Leaderless < Patience:
		return Decision{Action: Stay}
	case s.Self.Index == 0 || latest.Epoch.Follows(s.Self.Server.ID):
		return Decision{Follow, latest, fmt.Sprintf("the cluster goes on in %s, as server %s at %s says", latest.Epoch, latest.Server.Name, latest.Server.API())}
	}
	return Decision{KeepOut, latest, fmt.Sprintf("the cluster goes on without this server's log: server %s at %s has %s, and the log here, of %s, ends with entry %d of term %d, which may hold writes that the others never had; to give them up and join again run skiff recover --rejoin on this host",
		latest.Server.Name, latest.Server.API(), latest.Epoch, s.Self.Epoch, s.Self.Index, s.Self.Term)}
}

func leaderNamed(name string) string {
	if name == "" {
		return ""
	}
	return " (" + name + ")"
}
