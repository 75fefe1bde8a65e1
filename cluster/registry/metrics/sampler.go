package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
)

const (
	// freshFor is how long an answer of a node serves all who ask.
	freshFor = 3 * time.Second
	// firstWindow is how long a node is watched that nobody asked for lately: the
	// rates of the first answer are those of this time, and the first asker waits
	// for it.
	firstWindow = time.Second
	// longestWindow is how old a sample may be for a rate since then to be called
	// that of now.
	longestWindow = time.Minute
	// deadline is how long a node may take to answer.
	deadline = 5 * time.Second
	// atOnce bounds the nodes that are asked at a time.
	atOnce = 64
	// maxAnswer bounds the bytes of an answer; a node of 110 pods sends 100 KiB.
	maxAnswer = 16 << 20
)

// sampler asks nodes for their counters. It keeps the last two samples of each
// node that was asked for in the last minute.
type sampler struct {
	access nodeproxy.NodeAccess

	mu    sync.Mutex
	nodes map[string]*sampled
}

// sampled is one node.
type sampled struct {
	turn  chan struct{} // holds a token while somebody asks the node
	asked time.Time     // by the sampler's lock

	// by whom has the turn:
	pair  pair
	taken time.Time // when pair.after was, by this server's clock
	err   error     // of that time
}

// all samples nodes at a time; those that fail are missing in the answer, and
// logged.
func (s *sampler) all(ctx context.Context, names []string, log *slog.Logger) map[string]pair {
	out := make(map[string]pair, len(names))
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, name := range names {
		g.Go(func() error {
			p, err := s.one(gctx, name)
			if err != nil {
				if ctx.Err() == nil {
					log.Debug("metrics of a node", "node", name, "err", err)
				}
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = p
			return nil
		})
	}
	_ = g.Wait()
	return out
}

// one samples a node, or waits for whoever does so already.
func (s *sampler) one(ctx context.Context, name string) (pair, error) {
	n := s.find(name)
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return pair{}, ctx.Err()
	}
	if time.Since(n.taken) < freshFor {
		return n.pair, n.err
	}
	before := n.pair.after
	if before == nil || time.Since(n.taken) > longestWindow {
		var err error
		if before, err = s.ask(ctx, name); err != nil {
			return pair{}, n.failed(ctx, err)
		}
		select {
		case <-time.After(firstWindow):
		case <-ctx.Done():
			return pair{}, ctx.Err()
		}
	}
	after, err := s.ask(ctx, name)
	if err != nil {
		return pair{}, n.failed(ctx, err)
	}
	n.pair, n.taken, n.err = pair{before, after}, time.Now(), nil
	return n.pair, nil
}

// failed remembers an error that is not the asker's own.
func (n *sampled) failed(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		n.pair, n.taken, n.err = pair{}, time.Now(), err
	}
	return err
}

// find also forgets the nodes that nobody asked for lately.
func (s *sampler) find(name string) *sampled {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	n := s.nodes[name]
	if n == nil {
		for k, v := range s.nodes {
			if now.Sub(v.asked) > longestWindow && len(v.turn) == 0 {
				delete(s.nodes, k)
			}
		}
		n = &sampled{turn: make(chan struct{}, 1)}
		s.nodes[name] = n
	}
	n.asked = now
	return n
}

func (s *sampler) ask(ctx context.Context, name string) (*sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no answer in %s", deadline))
	defer cancel()
	got, err := s.get(ctx, name)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, context.Cause(ctx)
	}
	return got, err
}

func (s *sampler) get(ctx context.Context, name string) (*sample, error) {
	e, err := s.access.NodeAPI(ctx, name)
	if err != nil {
		return nil, err
	}
	u := *e.URL
	u.Path = "/metrics/resource"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("the node answers %s: %s", resp.Status, text)
	}
	return parse(io.LimitReader(resp.Body, maxAnswer), time.Now())
}
