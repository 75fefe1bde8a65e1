package epoch

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// Method is the name under which servers call each other's Handler.
const Method = "epoch"

// Handler answers with view, for the caller with an ID; heard, which may be nil,
// gets what the caller says of itself.
func Handler(view func(caller string) View, heard func(View)) consensus.Handler {
	return func(_ context.Context, from string, body []byte) ([]byte, error) {
		var v View
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, fmt.Errorf("a server that says what epoch it has: %w", err)
		}
		if heard != nil && v.Server.ID == from {
			heard(v)
		}
		return json.Marshal(view(from))
	}
}

// Answer of one server; Err says why there is none.
type Answer struct {
	Server membership.Server
	View   View
	Err    error
}

// Ask asks servers, all at the same time, and tells them self. It returns when
// all have answered or failed, the limit is over, or enough (if not nil) says so of
// an answer. Those who did not answer until then have an error.
func Ask(ctx context.Context, tls *tls.Config, self View, servers []membership.Server, limit time.Duration, enough func(View) bool) []Answer {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, err := json.Marshal(self)
	if err != nil {
		panic(err) // plain data
	}
	out := make([]Answer, len(servers))
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, s := range servers {
		out[i] = Answer{Server: s, Err: errors.New("it does not answer")}
		all.Go(func() {
			v, err := askOne(ctx, tls, self.Server.ID, s, body)
			mu.Lock()
			out[i] = Answer{Server: s, View: v, Err: err}
			mu.Unlock()
			if err == nil && enough != nil && enough(v) {
				cancel()
			}
		})
	}
	all.Wait() // the context ends all of them
	return out
}

func askOne(ctx context.Context, tls *tls.Config, from string, s membership.Server, body []byte) (v View, err error) {
	b, err := consensus.Ask(ctx, tls, s.Raft(), from, Method, body)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("server %s at %s: its answer: %w", s.Name, s.Raft(), err)
	}
	return v, nil
}

// Views are those that were given.
func Views(answers []Answer) (views []View) {
	for _, a := range answers {
		if a.Err == nil {
			views = append(views, a.View)
		}
	}
	return views
}
