package consensus

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose disk hangs goes on sending heartbeats: nobody else would lead,
// and nobody could write. So, when a write to its log hangs, it cuts itself off
// from Raft's traffic, and answers those who write or read that it does not lead.
// The others elect; nothing that was acknowledged needs this member. When the
// write returns it lets Raft talk again, which then learns of the new term.
//
// A follower whose disk hangs need not do anything: heartbeats are answered
// without the disk, and the majority goes on without it.
type stall struct {
	mu      sync.Mutex
	writes  int // that hang
	since   time.Time
	changed chan struct{} // of one place
}

const (
	hangBeats = 5  // heartbeat timeouts after which a write hangs
	hangSlow  = 20 // or so many times what writes take
	maxHang   = 20 * time.Second
)

// hangAfter is how long a write may take: 5 s, or 20 times the slowest of a
// hundred, if that is more, but at most 20 s.
func (n *Node) hangAfter() time.Duration {
	return max(hangBeats*n.c.HeartbeatTimeout, min(hangSlow*time.Duration(n.slowest.Load()), maxHang))
}

// hung is told by the log when a write hangs and when it returns.
func (n *Node) hung(hangs bool) {
	s := &n.stall
	s.mu.Lock()
	if hangs {
		if s.writes == 0 {
			s.since = time.Now().Add(-n.hangAfter())
		}
		s.writes++
	} else {
		s.writes--
	}
	is := s.writes > 0
	s.mu.Unlock()
	if r := n.raft.Load(); is && r != nil && r.State() == raft.Leader && !n.soleVoter(r) {
		n.c.Logger.Warn("the disk does not answer; leadership is left to the others", "file", n.log.Path())
		n.port.cutRaft(true)
	} else if !is && n.removed() == nil {
		n.port.cutRaft(false)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// problem says that the disk hangs, if it does.
func (s *stall) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writes == 0 {
		return nil
	}
	return fmt.Errorf("the disk does not answer: a write to the log has taken %v", time.Since(s.since).Round(time.Second))
}
