package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
)

// Open gives the plain form of a value of this state.
func (s *Sealer) Open(ctx context.Context, storeKey string, stored []byte) ([]byte, error) {
	plain, _, err := open(ctx, []byte(storeKey), stored, s.find)
	return plain, err
}

// Foreign brings values of another state of the same cluster, such as a
// snapshot's, into a form that this state's data keys open. It is not safe for
// concurrent use.
type Foreign struct {
	s     *Sealer
	keys  map[uint64]*foreignKey
	state map[string][]byte
	used  map[string]int64
}

type foreignKey struct {
	*dataKey
	here bool // this state has it under the same number
}

// Foreign takes the keys of the other state, those under Prefix at least. It
// fails if one of them can't be opened with this cluster's key.
func (s *Sealer) Foreign(state map[string][]byte) (*Foreign, error) {
	f := &Foreign{s: s, keys: map[uint64]*foreignKey{}, state: state, used: map[string]int64{}}
	view := s.cfg.Store.View()
	for key, record := range state {
		if !strings.HasPrefix(key, Prefix) {
			continue
		}
		n, err := recordNumber(key)
		if err != nil {
			return nil, err
		}
		d, err := openRecord(s.cfg.Key, n, record)
		if err != nil {
			return nil, err
		}
		have, ok := view.Get(key)
		f.keys[n] = &foreignKey{d, ok && bytes.Equal(have.Value, record)}
	}
	return f, nil
}

// Value gives the form of a value for this state: as it is, if this state has the
// same data key, else sealed anew with its newest. Plain ones stay plain.
func (f *Foreign) Value(ctx context.Context, storeKey string, stored []byte) ([]byte, error) {
	plain, n, err := open(ctx, []byte(storeKey), stored, func(n uint64) (*dataKey, error) {
		if k := f.keys[n]; k != nil {
			return k.dataKey, nil
		}
		return nil, fmt.Errorf("data key %d is missing", n)
	})
	if err != nil || n == 0 {
		return stored, err
	}
	if f.keys[n].here {
		return stored, f.use(n)
	}
	newest, err := f.s.ensure(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.use(newest.number); err != nil {
		return nil, err
	}
	return newest.seal(ctx, []byte(storeKey), plain)
}

func (f *Foreign) use(n uint64) error {
	key := recordKey(n)
	if f.used[key] != 0 {
		return nil
	}
	kv, ok := f.s.cfg.Store.View().Get(key)
	if !ok {
		return errors.New("the data key was rotated meanwhile: try again")
	}
	f.used[key] = kv.ModRevision
	return nil
}

// Used are the keys in this state that values given out need, with their
// ModRevision. They must still be there when the values are put into it.
func (f *Foreign) Used() map[string]int64 { return f.used }
