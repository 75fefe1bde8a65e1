package epoch

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Member is a server of the log's configuration, as a Plan shows it.
type Member struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Address string `json:"address"` // of its Raft port
	Voter   bool   `json:"voter"`
	Self    bool   `json:"self,omitempty"`
	// Answers: it could be asked. What follows is then its own word.
	Answers bool           `json:"answers"`
	Index   uint64         `json:"index,omitempty"` // of the last entry in its log
	Term    uint64         `json:"term,omitempty"`
	Epoch   *raftdir.Epoch `json:"epoch,omitempty"` // if it has another one
	Led     bool           `json:"led,omitempty"`   // its log has a leader
	// Seen is when gossip last held it for alive; nil: unknown.
	Seen    *time.Time `json:"seen,omitempty"`
	Problem string     `json:"problem,omitempty"`
}

// Plan is what a recovery from lost quorum, or a rejoin, would do.
type Plan struct {
	Server string        `json:"server"` // on which it begins
	Epoch  raftdir.Epoch `json:"epoch"`
	Index  uint64        `json:"index"` // of the last entry in its log
	Term   uint64        `json:"term"`
	// Members of the log's configuration, as this server has it.
	Members []Member `json:"members"`
	// Next is the epoch that would begin, or be joined.
	Next raftdir.Epoch `json:"next"`
	// Target is the server that would be joined; empty in a recovery.
	Target string `json:"target,omitempty"`
	// Refused says why it can't be done at all, Doubts why only who insists may.
	Refused string   `json:"refused,omitempty"`
	Doubts  []string `json:"doubts,omitempty"`
	// Losses are what may be lost by it.
	Losses []string `json:"losses,omitempty"`

	target *View
}

// Survey is what is known of the members.
type Survey struct {
	Self View
	// Members of the configuration: ID, Name, Address, Voter and Seen are set.
	Members []Member
	// Answers of them, and of other servers that are known.
	Answers []Answer
	// Damage says why this server's own log can't be read, if so.
	Damage string
}

// fill gives the members what they said.
func (s Survey) fill() []Member {
	members := slices.Clone(s.Members)
	for i := range members {
		m := &members[i]
		if m.ID == s.Self.Server.ID {
			m.Self, m.Answers, m.Index, m.Term, m.Led = true, true, s.Self.Index, s.Self.Term, s.Self.Led
			continue
		}
		m.Problem = "it is not known where it is"
		for _, a := range s.Answers {
			switch {
			case a.Err == nil && a.View.Server.ID == m.ID:
				m.Answers, m.Index, m.Term, m.Led, m.Problem = true, a.View.Index, a.View.Term, a.View.Led, ""
				if !a.View.Epoch.Same(s.Self.Epoch) {
					m.Epoch = &a.View.Epoch
				}
			case a.Err != nil && a.Server.ID == m.ID && !m.Answers:
				m.Problem = a.Err.Error()
			}
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return members
}

// Recovery plans to go on with this server's log, without those that are lost.
func (s Survey) Recovery(now time.Time) Plan {
	p := Plan{Server: s.Self.Server.Name, Epoch: s.Self.Epoch, Index: s.Self.Index, Term: s.Self.Term, Members: s.fill()}
	best, latest := s.Self, s.Self.Epoch
	for _, v := range Views(s.Answers) {
		switch {
		case v.Epoch.After(latest):
			latest = v.Epoch
		case v.Epoch.Same(s.Self.Epoch) && v.more(best):
			best = v
		}
		switch {
		case v.Led && v.Epoch.Same(s.Self.Epoch):
			p.Refused = fmt.Sprintf("the cluster has a quorum: server %s at %s has a leader%s, so nothing is to be recovered; if this server does not find it, look at the network between the two", v.Server.Name, v.Server.API(), leaderNamed(v.Leader))
		case v.Led && v.Epoch.After(s.Self.Epoch) && p.Refused == "":
			p.Refused = fmt.Sprintf("the cluster goes on in %s without this server's log, on server %s at %s: run skiff recover --rejoin here", v.Epoch, v.Server.Name, v.Server.API())
		}
	}
	var voters, answer int
	var followers, lost []string
	self := false
	for _, m := range p.Members {
		same := m.Answers && m.Epoch == nil
		if m.Voter {
			voters++
			if same {
				answer++
			} else {
				lost = append(lost, m.Name)
			}
		}
		switch {
		case m.Self:
			self = m.Voter
		case same:
			followers = append(followers, m.ID)
		}
	}
	p.Next = latest.Next(raftdir.Recovered, s.Self.Server.Name, now, followers...)
	switch {
	case p.Refused != "":
	case s.Self.Led:
		p.Refused = "the cluster has a quorum: this server's log has a leader" + leaderNamed(s.Self.Leader) + ", so nothing is to be recovered"
	case s.Damage != "":
		p.Refused = "this server's log can't be read (" + s.Damage + "): recover on another server, or restore a snapshot"
	case s.Self.Index == 0:
		p.Refused = "this server's log is empty: it has nothing to go on with"
	}
	if p.Refused != "" {
		return p
	}
	if best.Server.ID != s.Self.Server.ID {
		p.Doubts = append(p.Doubts, fmt.Sprintf("server %s has more of the log (entry %d of term %d, here it is entry %d of term %d): recover there", best.Server.Name, best.Index, best.Term, s.Self.Index, s.Self.Term))
	}
	if voters > 0 && answer > voters/2 {
		p.Doubts = append(p.Doubts, fmt.Sprintf("%d of %d voting servers answer, which is a quorum: they will elect a leader by themselves, within seconds unless something keeps them from each other", answer, voters))
	}
	if !self {
		p.Doubts = append(p.Doubts, "this server has no vote: it may lack writes that were acknowledged long ago")
	}
	if len(lost) > 0 {
		p.Losses = append(p.Losses, fmt.Sprintf("writes that were acknowledged after entry %d are lost, if there were any, unless %s can be brought back", s.Self.Index, strings.Join(lost, " or ")))
	}
	if len(followers) > 0 {
		p.Losses = append(p.Losses, fmt.Sprintf("%s: what only their logs have is moved aside", strings.Join(names(p.Members, followers), ", ")))
	}
	return p
}

// Rejoining plans to give up this server's log for the one that the cluster goes
// on with.
func (s Survey) Rejoining() Plan {
	p := Plan{Server: s.Self.Server.Name, Epoch: s.Self.Epoch, Index: s.Self.Index, Term: s.Self.Term, Members: s.fill()}
	for _, v := range Views(s.Answers) {
		if v.Led && v.Server.ID != s.Self.Server.ID && (p.target == nil || v.Epoch.After(p.target.Epoch)) {
			p.target = &v
		}
	}
	switch {
	case p.target == nil:
		p.Refused = "no other server answers that has a leader: there is nothing to join; if quorum is lost, see skiff recover without --rejoin"
		return p
	case p.target.Epoch.Same(s.Self.Epoch) && s.Self.Led:
		p.Refused = "this server belongs to the cluster that has the quorum: it has nothing to give up"
	}
	p.Next, p.Target = p.target.Epoch, p.target.Server.Name
	if s.Self.Epoch.After(p.Next) {
		p.Doubts = append(p.Doubts, fmt.Sprintf("server %s has %s, which is earlier than that of this server: members of the later one that still run would draw it back", p.Target, p.Next))
	}
	if s.Damage != "" {
		p.Losses = append(p.Losses, "this server's log, which can't be read ("+s.Damage+"), is moved aside")
	}
	if s.Self.Index > 0 {
		p.Losses = append(p.Losses, fmt.Sprintf("this server's log, up to entry %d of term %d of %s, is moved aside: what the others never had of it is lost", s.Self.Index, s.Self.Term, s.Self.Epoch))
	}
	return p
}

// Intent carries the plan out; Refused and Doubts are the caller's business.
func (p Plan) Intent(self raftdir.Member) Intent {
	if p.target != nil {
		return RejoinIntent(*p.target)
	}
	return Intent{ID: NewID(), Do: Begin, Epoch: p.Next, Member: self}
}

func names(members []Member, ids []string) (out []string) {
	for _, m := range members {
		if slices.Contains(ids, m.ID) {
			out = append(out, m.Name)
		}
	}
	return out
}
