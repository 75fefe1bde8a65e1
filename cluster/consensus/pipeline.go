package consensus

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A pipeline sends appends to a follower that is up to date, without waiting
// for answers. Raft asks for an empty one every millisecond (CommitTimeout), to
// tell the commit index; it holds back those that say what was said before.
//
// What is held back is not answered: what Raft concludes from answers (that it
// still leads, what is committed) comes from answers that were given.
type pipeline struct {
	raft.AppendPipeline
	t  *replicator
	id raft.ServerID

	out    chan raft.AppendFuture
	done   chan struct{}
	close  sync.Once
	failed atomic.Bool
	acked  atomic.Uint64 // log index that the follower has acknowledged here

	// What was sent last; of Raft's goroutine.
	index, commit, breaks uint64
	began                 bool
}

const (
	maxHold    = time.Second          // an append that says nothing new is sent this often, to find what is lost
	commitPoll = 5 * time.Millisecond // while entries are not committed, their commit may need a look
)

var errPipeline = errors.New("the follower did not accept an append")

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if len(req.Entries) == 0 {
		send, err := p.hold(req)
		if err != nil || !send {
			return nil, err // Raft does not look at the future
		}
	}
	if p.t.reignOf(req.Term).Err() != nil {
		return nil, errDeposed
	}
	p.began, p.index, p.commit, p.breaks = true, lastOf(req), req.LeaderCommitIndex, p.t.breaksOf(p.id)
	p.t.sent.Add(1)
	return p.AppendPipeline.AppendEntries(req, resp)
}

// hold returns true when an empty append has to be sent, and false when it can
// be dropped: the log has moved, and Raft will make another.
func (p *pipeline) hold(req *raft.AppendEntriesRequest) (send bool, err error) {
	r := p.t.n.raft.Load()
	if r == nil || !p.began {
		return true, nil
	}
	reign := p.t.reignOf(req.Term)
	end := time.NewTimer(maxHold)
	defer end.Stop()
	for {
		news := p.t.next()
		commit, last := r.CommitIndex(), r.LastIndex()
		switch { // the reign is looked at after what it vouches for
		case reign.Err() != nil:
			return false, errDeposed
		case p.failed.Load():
			return false, errPipeline
		case last != req.PrevLogEntry:
			return false, nil
		case p.index != req.PrevLogEntry, p.breaks != p.t.breaksOf(p.id):
			return true, nil
		case commit != p.commit:
			if p.acked.Load() == req.PrevLogEntry { // it has what is committed
				req.LeaderCommitIndex = commit
			}
			return req.LeaderCommitIndex != p.commit, nil
		}
		var poll <-chan time.Time
		if commit < last {
			poll = time.After(commitPoll)
		}
		select {
		case <-news:
		case <-poll:
		case <-end.C:
			return true, nil
		case <-reign.Done():
		case <-p.done:
			return false, errPipeline
		}
	}
}

// forward passes answers on to Raft, and looks at them.
func (p *pipeline) forward() {
	in := p.AppendPipeline.Consumer()
	for {
		select {
		case f := <-in:
			req, resp := f.Request(), f.Response()
			if resp.Success && resp.Term <= req.Term {
				p.t.note(p.id, req, resp, f.Start())
				p.acked.Store(lastOf(req))
			} else {
				p.failed.Store(true)
			}
			p.t.news()
			select {
			case p.out <- f:
			case <-p.done:
				return
			}
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.close.Do(func() { close(p.done) })
	return p.AppendPipeline.Close()
}
