package seal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/storage/value"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Log is where writes go; cluster/consensus implements it.
type Log interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
}

// Config of a Sealer.
type Config struct {
	Key   *Key
	Store *store.Store
	Log   Log
	// Prefixes of the keys whose values are sealed, besides skiff's own; Duty
	// brings what is there into the newest form.
	Prefixes []string
	// Pause before an old data key is dropped, default one minute: as long as a
	// request may take.
	Pause  time.Duration
	Logger *slog.Logger
}

// Sealer seals and opens values with the data keys of the state. It is safe for
// concurrent use.
type Sealer struct {
	cfg Config

	mu   sync.Mutex
	keys map[uint64]*dataKey // all that were ever opened: past versions need them

	step func(string) // told before each write of Duty and Rotate, for tests
}

var _ value.Transformer = (*Sealer)(nil)

// New validates c and starts nothing.
func New(c Config) (*Sealer, error) {
	if c.Key == nil || c.Store == nil || c.Log == nil {
		return nil, errors.New("seal: Key, Store and Log are needed")
	}
	c.Prefixes = append([]string{TrustKey}, c.Prefixes...)
	if c.Pause <= 0 {
		c.Pause = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Sealer{cfg: c, keys: map[uint64]*dataKey{}, step: func(string) {}}, nil
}

// TransformToStorage seals data for the store's key that dataCtx names, with the
// newest data key; the first call in a cluster makes one.
func (s *Sealer) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	d, err := s.ensure(ctx)
	if err != nil {
		return nil, err
	}
	return d.seal(ctx, dataCtx.AuthenticatedData(), data)
}

// TransformFromStorage opens a value. It is stale when it is plain or sealed
// with another key than the newest. ErrKeyGone is for past versions only.
func (s *Sealer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	plain, n, err := open(ctx, dataCtx.AuthenticatedData(), data, s.find)
	return plain, n == 0 || n != s.newest(), err
}

// Lost says whether a value that was just stored is sealed with a data key that
// the state no longer has: the writer had not heard of a rotation, and has to
// write again.
func (s *Sealer) Lost(stored []byte) bool {
	n, err := Number(stored)
	if err != nil || n == 0 {
		return false
	}
	_, ok := s.cfg.Store.View().Get(recordKey(n))
	return !ok
}

// find returns a data key by its number.
func (s *Sealer) find(n uint64) (*dataKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.keys[n]; d != nil {
		return d, nil
	}
	kv, ok := s.cfg.Store.View().Get(recordKey(n))
	if !ok {
		return nil, ErrKeyGone
	}
	d, err := openRecord(s.cfg.Key, n, kv.Value)
	if err == nil {
		s.keys[n] = d
	}
	return d, err
}

// newest is the number of the key that new values are sealed with, 0 if there
// is none.
func (s *Sealer) newest() uint64 {
	numbers := s.numbers(s.cfg.Store.View())
	if len(numbers) == 0 {
		return 0
	}
	return numbers[len(numbers)-1]
}

// numbers are those of all data keys of v, ascending.
func (s *Sealer) numbers(v *store.View) (out []uint64) {
	v.Ascend(Prefix, "", func(kv *store.KeyValue) bool {
		if n, err := recordNumber(kv.Key); err == nil {
			out = append(out, n)
		}
		return true
	})
	return out
}

// ensure returns the newest data key, and makes the first one.
func (s *Sealer) ensure(ctx context.Context) (*dataKey, error) {
	for {
		if n := s.newest(); n != 0 {
			return s.find(n)
		}
		if err := s.add(ctx, 1); err != nil && !errors.Is(err, store.ErrExists) {
			return nil, err
		}
		if s.newest() == 0 {
			return nil, errors.New("a data key was made, but has not come here yet: try again")
		}
	}
}

// add puts a new data key into the state.
func (s *Sealer) add(ctx context.Context, n uint64) error {
	b, err := newRecord(s.cfg.Key, n, time.Now())
	if err != nil {
		return err
	}
	s.step("add")
	r, err := s.cfg.Log.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: recordKey(n), Value: b, Expect: 0}))
	if err = errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("make a data key: %w", err)
	}
	return nil
}

// ErrRotating says that the last rotation is not through.
var ErrRotating = errors.New("a rotation of the data key is under way; see skiff encryption status")

// Rotate makes a new data key, which new values are sealed with from now on.
// The leader's Duty brings the old values to it and drops the old key.
func (s *Sealer) Rotate(ctx context.Context) error {
	d, err := s.ensure(ctx) // also: the cluster key of this host is the right one
	if err != nil {
		return err
	}
	if len(s.numbers(s.cfg.Store.View())) > 1 {
		return ErrRotating
	}
	err = s.add(ctx, d.number+1)
	if errors.Is(err, store.ErrExists) {
		return ErrRotating
	}
	return err
}
