package storage

import (
	"context"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

const (
	// expireBatch bounds what one log entry deletes.
	expireBatch = 500
	// expireNap bounds how late a version is noticed that another server wrote
	// with a shorter life than everything before it.
	expireNap = time.Minute
	// expireRetry is the pause after a failed proposal.
	expireRetry = time.Second
)

// Expire deletes keys whose time is over, until ctx ends. It is a leader's
// duty: each run sleeps until the next key expires and proposes the deletes in
// batches, so nothing is written while nothing expires.
func (b *Backend) Expire(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.rearm:
		case <-timer.C:
		}
		timer.Reset(b.expireDue(ctx, time.Now()))
	}
}

// expireDue deletes what is due and returns how long to sleep.
func (b *Backend) expireDue(ctx context.Context, now time.Time) time.Duration {
	for {
		due := b.store.Expired(now.Unix(), expireBatch)
		if len(due) == 0 {
			break
		}
		ops := make([]fsm.Op, len(due))
		for i, d := range due {
			ops[i] = fsm.Op{Type: fsm.Delete, Key: d.Key, Expect: d.ModRevision}
		}
		if err := b.deleteExpired(ctx, ops); err != nil {
			if ctx.Err() == nil {
				b.logger.Warn("expired objects stay a little longer", "count", len(ops), "error", err)
			}
			return expireRetry
		}
	}
	at, ok := b.store.NextExpiry()
	if !ok {
		return expireNap
	}
	return min(max(time.Unix(at, 0).Sub(now), 0), expireNap)
}

// deleteExpired deletes all of ops; one whose version was replaced meanwhile is
// left alone.
func (b *Backend) deleteExpired(ctx context.Context, ops []fsm.Op) error {
	r, err := b.propose(ctx, fsm.Batch(ops...))
	if err != nil || r.Err == nil {
		return err
	}
	for _, op := range ops { // all or nothing: somebody was faster with one of them
		if _, err := b.propose(ctx, fsm.One(op)); err != nil {
			return err
		}
	}
	return nil
}

// expiresAt is the absolute expiry of something that lives for ttl seconds.
func (b *Backend) expiresAt(ttl uint64) int64 {
	if ttl == 0 {
		return 0
	}
	return time.Now().Add(time.Duration(ttl) * time.Second).Unix()
}

// wakeExpire makes Expire look again.
func (b *Backend) wakeExpire() {
	select {
	case b.rearm <- struct{}{}:
	default:
	}
}
