package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func put(s *Store, key, value string, expect int64) (kv *KeyValue, err error) {
	s.Update(func(tx *Txn) { kv, err = tx.Put(key, []byte(value), expect, 0) })
	return kv, err
}

func del(s *Store, key string, expect int64) (kv *KeyValue, err error) {
	s.Update(func(tx *Txn) { kv, err = tx.Delete(key, expect) })
	return kv, err
}

func keys(v *View, prefix, from string) (out []string) {
	v.Ascend(prefix, from, func(kv *KeyValue) bool { out = append(out, kv.Key); return true })
	return out
}

func TestExpectations(t *testing.T) {
	s := New(Config{})
	a, err := put(s, "/a", "1", 0)
	if err != nil || a.ModRevision != 2 || a.CreateRevision != 2 {
		t.Fatalf("first put: %+v, %v", a, err)
	}
	for _, c := range []struct {
		name string
		do   func() (*KeyValue, error)
		err  error
		cur  *KeyValue
	}{
		{"create what exists", func() (*KeyValue, error) { return put(s, "/a", "2", 0) }, ErrExists, a},
		{"update what is not there", func() (*KeyValue, error) { return put(s, "/b", "2", 7) }, ErrNotFound, nil},
		{"update another revision", func() (*KeyValue, error) { return put(s, "/a", "2", 7) }, ErrConflict, a},
		{"delete what is not there", func() (*KeyValue, error) { return del(s, "/b", -1) }, ErrNotFound, nil},
		{"delete another revision", func() (*KeyValue, error) { return del(s, "/a", 7) }, ErrConflict, a},
		{"delete what must not exist", func() (*KeyValue, error) { return del(s, "/a", 0) }, ErrExists, a},
	} {
		t.Run(c.name, func(t *testing.T) {
			cur, err := c.do()
			if !errors.Is(err, c.err) || cur != c.cur {
				t.Errorf("got %+v, %v; want %+v, %v", cur, err, c.cur, c.err)
			}
			if s.Revision() != 2 {
				t.Errorf("revision %d after a refusal, want 2", s.Revision())
			}
		})
	}
	b, err := put(s, "/a", "2", 2)
	if err != nil || b.CreateRevision != 2 || b.ModRevision != 3 {
		t.Fatalf("update: %+v, %v", b, err)
	}
	if old, err := del(s, "/a", 3); err != nil || old != b {
		t.Fatalf("delete: %+v, %v", old, err)
	}
	if s.Revision() != 4 || s.View().Len() != 0 || s.View().Bytes() != 0 {
		t.Fatalf("after delete: revision %d, %d keys, %d bytes", s.Revision(), s.View().Len(), s.View().Bytes())
	}
}

func TestAtomicTakesEverythingBack(t *testing.T) {
	s := New(Config{})
	put(s, "/a", "1", 0)
	boom := errors.New("boom")
	s.Update(func(tx *Txn) {
		tx.Put("/before", nil, -1, 0)
		err := tx.Atomic(func() error {
			for i := range 200 {
				tx.Put(fmt.Sprintf("/x/%03d", i), nil, 0, 5)
			}
			tx.Delete("/a", -1)
			return boom
		})
		if !errors.Is(err, boom) {
			t.Errorf("Atomic returned %v", err)
		}
		tx.Put("/after", nil, -1, 0)
	})
	if got := fmt.Sprint(keys(s.View(), "", "")); got != "[/a /after /before]" {
		t.Errorf("keys %s", got)
	}
	if s.Revision() != 4 {
		t.Errorf("revision %d, want 4", s.Revision())
	}
	if _, ok := s.NextExpiry(); ok {
		t.Error("an expiry was left behind")
	}
	evs, _, err := s.Watch("/", 1).Next(context.Background())
	if err != nil || len(evs) != 3 || evs[2].Key != "/after" || evs[2].Revision != 4 {
		t.Errorf("events %v, %v", evs, err)
	}
}

func TestExpiry(t *testing.T) {
	s := New(Config{})
	s.Update(func(tx *Txn) {
		tx.Put("/late", nil, 0, 300)
		tx.Put("/b", nil, 0, 100)
		tx.Put("/a", nil, 0, 100)
		tx.Put("/never", nil, 0, 0)
		tx.Put("/moved", nil, 0, 50)
		tx.Put("/moved", nil, -1, 200)
		tx.Put("/gone", nil, 0, 10)
		tx.Delete("/gone", -1)
	})
	if at, ok := s.NextExpiry(); !ok || at != 100 {
		t.Errorf("next expiry %d %v", at, ok)
	}
	if got := fmt.Sprint(s.Expired(99, 10)); got != "[]" {
		t.Errorf("at 99: %s", got)
	}
	if got := fmt.Sprint(s.Expired(200, 10)); got != "[{/a 4} {/b 3} {/moved 7}]" {
		t.Errorf("at 200: %s", got)
	}
	if got := fmt.Sprint(s.Expired(1000, 2)); got != "[{/a 4} {/b 3}]" {
		t.Errorf("with a limit: %s", got)
	}
}
