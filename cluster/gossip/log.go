package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	quiet      = 10 * time.Minute // a complaint of one kind about one member is repeated so often
	quietKinds = 256
)

// quieter lets one of equal complaints through in a while.
type quieter struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu

	begun map[string]time.Time // of a minute of complaints, for often; guarded by mu
	count map[string]int
}

// often reports whether complaints of that kind are as many as n in a minute.
func (q *quieter) often(key string, n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.begun == nil {
		q.begun, q.count = map[string]time.Time{}, map[string]int{}
	}
	if now := time.Now(); now.Sub(q.begun[key]) > time.Minute {
		q.begun[key], q.count[key] = now, 0
	}
	q.count[key]++
	return q.count[key] >= n
}

func (q *quieter) first(key string, every time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if at, ok := q.last[key]; ok && now.Sub(at) < every {
		return false
	}
	if q.last == nil || len(q.last) >= quietKinds {
		q.last = map[string]time.Time{}
	}
	q.last[key] = now
	return true
}

// lines takes what memberlist logs. Its errors are mostly those of others, so
// all but a few kinds are for somebody debugging; these few are said once in a
// while.
type lines struct {
	log *slog.Logger
	q   *quieter
}

func memberlistLogger(l *slog.Logger, q *quieter) *log.Logger { return log.New(lines{l, q}, "", 0) }

// problems are the lines worth an operator's attention, what they mean, and how
// many of them in a minute are more than a busy moment.
var problems = []struct {
	contains, means string
	often           int
}{
	{"no installed keys could decrypt", "gossip with a key that is not ours is ignored", 1},
	{"Decrypt packet failed", "gossip that is not encrypted with our key is ignored", 1},
	{"remote state is not encrypted", "gossip without encryption is ignored", 1},
	{"over TCP but UDP probes failed", "members answer over TCP but not over UDP: is the gossip port open for UDP?", 20},
	{"handler queue full", "gossip comes faster than it can be handled", 1},
}

func (w lines) Write(p []byte) (int, error) {
	text := string(bytes.TrimSpace(p))
	for _, problem := range problems {
		if strings.Contains(text, problem.contains) {
			if w.q.often(problem.means, problem.often) && w.q.first(problem.means+host(text), quiet) {
				w.log.Warn(problem.means, "detail", text)
				return len(p), nil
			}
			break
		}
	}
	if w.log.Enabled(context.Background(), slog.LevelDebug) {
		if _, after, ok := strings.Cut(text, "] memberlist: "); ok {
			text = after
		}
		w.log.Debug("memberlist: " + text)
	}
	return len(p), nil
}

// host returns the address, without its port, that a line of memberlist ends with.
func host(text string) string {
	_, from, ok := strings.Cut(text, "from=")
	if !ok {
		return ""
	}
	if i := strings.LastIndexByte(from, ':'); i >= 0 {
		from = from[:i]
	}
	return from
}
