package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

// MethodRemove removes the server that calls it.
const MethodRemove = "membership/remove"

type removeRequest struct {
	Name  string `json:"name"`
	By    string `json:"by"`
	Force bool   `json:"force"`
}

type removeAnswer struct {
	Removed *Removed `json:"removed,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
}

// removeSelf lets another server remove this one.
func (s *Service) removeSelf(ctx context.Context, t *target, by string, force bool) (*Removed, error) {
	if t.inRaft { // if it is refused, leadership stays where it is
		if risk, err := s.risk(ctx, t); err != nil {
			return nil, err
		} else if risk != "" && !force {
			return nil, riskRefusal(risk)
		}
	}
	body, err := json.Marshal(removeRequest{Name: t.Name, By: by, Force: force})
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	err = s.c.Raft.HandOver(ctx)
	switch {
	case errors.Is(err, consensus.ErrQuorumRisk):
		return nil, refuse(http.StatusConflict, "server %s stays: %v", t.Name, err)
	case err != nil:
		return nil, fmt.Errorf("server %s leads, and no other could take over: %w (%w)", t.Name, err, errTryAgain)
	}
	s.busy.Lock()
	defer s.busy.Unlock()
	b, err := s.c.Raft.CallLeader(ctx, MethodRemove, body)
	if err != nil {
		return nil, fmt.Errorf("remove server %s: %w", t.Name, err)
	}
	a, err := decodeJSON[removeAnswer](b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("remove server %s: answer of the leader: %w", t.Name, err)
	case a.Refusal != nil:
		return nil, a.Refusal
	case a.Removed == nil:
		return nil, fmt.Errorf("remove server %s: the leader's answer is empty", t.Name)
	}
	select {
	case s.told <- &Removal{Name: t.Name, Role: t.role, By: by, At: s.c.Now().UTC().Truncate(time.Second)}:
	default:
	}
	return a.Removed, nil
}

// answerRemove removes another server for itself.
func (s *Service) answerRemove(ctx context.Context, _ string, body []byte) ([]byte, error) {
	q, err := decodeJSON[removeRequest](body)
	if err != nil {
		return nil, fmt.Errorf("request to remove a server: %w", err)
	}
	t, err := s.find(ctx, q.Name)
	var a removeAnswer
	switch {
	case err == nil && t.ID == s.c.Self().ID:
		return nil, fmt.Errorf("remove server %s: %w", q.Name, consensus.ErrNotLeader) // it leads again
	case err == nil:
		a.Removed, err = s.remove(ctx, t, q.By, q.Force)
	}
	if err != nil && !errors.As(err, &a.Refusal) {
		return nil, err
	}
	return json.Marshal(a)
}
