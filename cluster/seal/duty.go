package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

const (
	batchValues = 64        // a log entry of a rewrite has no more values,
	batchBytes  = 256 << 10 // and little more than this: others get in between
	lookAgain   = time.Minute
	retry       = time.Second
)

// Duty is the leader's: it sees to it that there is a data key, seals what is
// plain, brings values to the newest key and drops the others. It remembers
// nothing: all it needs to know is in the state, so another leader goes on where
// this one ended.
func (s *Sealer) Duty(ctx context.Context) error {
	clean := time.Time{} // since when no value is sealed with an old key; zero: not known
	said := ""           // is not said again
	for ctx.Err() == nil {
		changed := s.cfg.Store.Watch(Prefix, s.cfg.Store.Revision())
		err := s.tidy(ctx, &clean)
		pause := lookAgain
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				s.cfg.Logger.Warn("what is secret is not all sealed as it should be, will try again", "error", err)
			}
			pause = retry
		case !clean.IsZero() && len(s.numbers(s.cfg.Store.View())) > 1:
			pause = max(s.cfg.Pause-time.Since(clean), time.Millisecond)
		}
		if err == nil {
			said = ""
		}
		wait, cancel := context.WithTimeout(ctx, pause)
		_, _, _ = changed.Next(wait) // a new key, or time to look again
		cancel()
	}
	return nil
}

// tidy does what there is to do now.
func (s *Sealer) tidy(ctx context.Context, clean *time.Time) error {
	newest, err := s.ensure(ctx)
	if err != nil {
		return err
	}
	if err := s.publishFile(ctx); err != nil {
		return err
	}
	moved, err := s.rewrite(ctx, newest)
	if moved > 0 {
		s.cfg.Logger.Info("sealed with the newest data key", "values", moved, "key", newest.number)
	}
	if err != nil || moved > 0 || clean.IsZero() {
		*clean = time.Time{}
		if err == nil {
			*clean = time.Now()
		}
	}
	if err != nil || time.Since(*clean) < s.cfg.Pause {
		return err
	}
	return s.drop(ctx, newest.number)
}

// publishFile keeps the form of the cluster key under a passphrase in the state.
func (s *Sealer) publishFile(ctx context.Context) error {
	kv, have := s.cfg.Store.View().Get(FileKey)
	op := fsm.Op{Type: fsm.Put, Key: FileKey, Value: s.cfg.Key.Sealed(), Expect: fsm.Any}
	switch {
	case op.Value == nil && !have, have && bytes.Equal(kv.Value, op.Value):
		return nil
	case op.Value == nil:
		op = fsm.Op{Type: fsm.Delete, Key: FileKey, Expect: kv.ModRevision}
	}
	s.step("file")
	r, err := s.cfg.Log.Propose(ctx, fsm.One(op))
	if err = errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("keep the sealed cluster key in the state: %w", err)
	}
	return nil
}

// rewrite brings all values to the newest key, a batch at a time.
func (s *Sealer) rewrite(ctx context.Context, newest *dataKey) (moved int, err error) {
	for _, prefix := range s.cfg.Prefixes {
		for from := ""; ; {
			var ops []fsm.Op
			size := 0
			s.cfg.Store.View().Ascend(prefix, from, func(kv *store.KeyValue) bool {
				if n, _ := Number(kv.Value); n == newest.number {
					return ctx.Err() == nil
				}
				var op fsm.Op
				if op, err = s.move(ctx, kv, newest); err != nil {
					return false
				}
				ops, size, from = append(ops, op), size+len(op.Value), kv.Key+"\x00"
				return len(ops) < batchValues && size < batchBytes
			})
			if err = errors.Join(err, ctx.Err()); err != nil {
				return moved, err
			}
			if len(ops) == 0 {
				break
			}
			n, err := s.commit(ctx, ops)
			if moved += n; err != nil {
				return moved, err
			}
		}
	}
	return moved, nil
}

// move is the operation that brings one value to the newest key.
func (s *Sealer) move(ctx context.Context, kv *store.KeyValue, newest *dataKey) (fsm.Op, error) {
	plain, n, err := open(ctx, []byte(kv.Key), kv.Value, s.find)
	if errors.Is(err, ErrKeyGone) {
		// Dropped keys were in use by no value. So this was created by a server that
		// did not know of the rotation and died before it could write it again: its
		// client never heard that it exists.
		s.cfg.Logger.Warn("removed a value that was written with a dropped data key and never confirmed", "key", kv.Key, "dataKey", n)
		return fsm.Op{Type: fsm.Delete, Key: kv.Key, Expect: kv.ModRevision}, nil
	}
	if err != nil {
		return fsm.Op{}, err
	}
	b, err := newest.seal(ctx, []byte(kv.Key), plain)
	return fsm.Op{Type: fsm.Put, Key: kv.Key, Value: b, Expect: kv.ModRevision, Expires: kv.Expires}, err
}

// commit writes ops; one whose value somebody else has written meanwhile is left
// out.
func (s *Sealer) commit(ctx context.Context, ops []fsm.Op) (int, error) {
	s.step("rewrite")
	r, err := s.cfg.Log.Propose(ctx, fsm.Batch(ops...))
	if err != nil {
		return 0, fmt.Errorf("rewrite sealed values: %w", err)
	}
	if r.Err == nil {
		return len(ops), nil
	}
	done := 0
	for _, op := range ops { // all or nothing: somebody was faster with one of them
		r, err := s.cfg.Log.Propose(ctx, fsm.One(op))
		if err != nil {
			return done, fmt.Errorf("rewrite sealed values: %w", err)
		}
		if r.Err == nil {
			done++
		}
	}
	return max(done, 1), nil // look again
}

// unused looks at every value there is, also where none should be sealed: a data
// key that is dropped too early is the loss of what it seals.
func (s *Sealer) unused(newest uint64) (err error) {
	s.cfg.Store.View().Ascend("", "", func(kv *store.KeyValue) bool {
		if n, _ := Number(kv.Value); n != 0 && n != newest {
			err = fmt.Errorf("%s is sealed with data key %d and was not brought to key %d: the old keys stay", kv.Key, n, newest)
		}
		return err == nil
	})
	return err
}

// drop removes all data keys but the newest.
func (s *Sealer) drop(ctx context.Context, newest uint64) error {
	var ops []fsm.Op
	s.cfg.Store.View().Ascend(Prefix, "", func(kv *store.KeyValue) bool {
		if n, err := recordNumber(kv.Key); err == nil && n < newest {
			ops = append(ops, fsm.Op{Type: fsm.Delete, Key: kv.Key, Expect: kv.ModRevision})
		}
		return true
	})
	if len(ops) == 0 {
		return nil
	}
	if err := s.unused(newest); err != nil {
		return err
	}
	s.step("drop")
	r, err := s.cfg.Log.Propose(ctx, fsm.Batch(ops...))
	if err = errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("drop old data keys: %w", err)
	}
	s.cfg.Logger.Info("dropped old data keys", "count", len(ops), "newest", newest)
	return nil
}
