package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// RecoverPath on the API port shows (GET) and carries out (POST) what `skiff
// recover` does on the server that is asked; with ?rejoin=true the server gives up
// its log. POST with ?force=true goes on in spite of doubts.
const RecoverPath = "/skiff/v1/recover"

// survey asks all other servers.
func (s *Server) survey(ctx context.Context) epoch.Survey {
	out := epoch.Survey{Self: s.view(""), Answers: s.askEpochs(ctx, askLimit, nil)}
	names := map[string]string{}
	for _, o := range s.servers() {
		names[o.ID] = o.Name
	}
	seen := map[string]membership.Peer{}
	for _, p := range s.peers() {
		seen[p.ID] = p
	}
	members := s.node.Members()
	if !s.node.Started() { // it is kept out
		stored, err := s.node.StoredMembers()
		if err != nil {
			out.Damage = err.Error()
		}
		members = stored
	}
	for _, m := range members {
		e := epoch.Member{ID: m.ID, Name: names[m.ID], Address: m.Address, Voter: m.Voter}
		if e.Name == "" {
			e.Name = m.ID
		}
		if p, ok := seen[m.ID]; ok {
			at := time.Now()
			if p.State != membership.Alive {
				at = p.Since
			}
			e.Seen = &at
		}
		out.Members = append(out.Members, e)
	}
	return out
}

func (s *Server) recoveryPlan(ctx context.Context, rejoin bool) epoch.Plan {
	survey := s.survey(ctx)
	if rejoin {
		return survey.Rejoining()
	}
	return survey.Recovery(time.Now())
}

// recover notes a plan, and starts this server again to carry it out.
func (s *Server) recover(ctx context.Context, p epoch.Plan) error {
	i := p.Intent(raftdir.Member{ID: s.id, Addr: s.self().Raft()})
	if err := s.intend(ctx, i); err != ErrRestart {
		return err
	}
	s.cfg.Logger.Warn("this server starts again in another epoch of the log; pods go on", "do", i.Do, "epoch", i.Epoch)
	select {
	case s.epochs.restart <- struct{}{}:
	default:
	}
	return nil
}

// serveRecover answers RecoverPath.
func (s *Server) serveRecover(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	rejoin, force := q.Get("rejoin") == "true", q.Get("force") == "true"
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "only GET and POST are allowed", http.StatusMethodNotAllowed)
		return
	}
	plan := s.recoveryPlan(r.Context(), rejoin)
	if r.Method == http.MethodPost {
		if err := checkPlan(plan, force); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		if err := s.recover(r.Context(), plan); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(plan); err != nil {
		s.cfg.Logger.Debug("answer", "path", RecoverPath, "error", err)
	}
}

func checkPlan(p epoch.Plan, force bool) error {
	if p.Refused != "" {
		return fmt.Errorf("%s", p.Refused)
	}
	if len(p.Doubts) > 0 && !force {
		return fmt.Errorf("%s; --force goes on all the same", p.Doubts[0])
	}
	return nil
}
