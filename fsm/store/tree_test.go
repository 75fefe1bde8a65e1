package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// model is the store as a sorted map, at each revision.
type model map[string]int64 // key -> ModRevision

func (m model) keys(prefix, from string) (out []string) {
	for k := range m {
		if strings.HasPrefix(k, prefix) && k >= from {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func (m model) compare(t *testing.T, v *View, r *rand.Rand) {
	t.Helper()
	all := m.keys("", "")
	if v.Len() != len(m) || !slices.Equal(keys(v, "", ""), all) {
		t.Fatalf("revision %d: %d keys, want %d", v.Revision(), v.Len(), len(m))
	}
	for k, rev := range m {
		if kv, ok := v.Get(k); !ok || kv.ModRevision != rev {
			t.Fatalf("revision %d: %s is %+v, want it from %d", v.Revision(), k, kv, rev)
		}
	}
	if _, ok := v.Get("/nothing"); ok {
		t.Fatal("found what is not there")
	}
	for _, p := range []string{"/a/", "/a/1", "/b", "/b/2", "/zzz", "/", "\xff"} {
		if got, want := keys(v, p, ""), m.keys(p, ""); !slices.Equal(got, want) || v.Count(p) != len(want) {
			t.Fatalf("prefix %q: %v (counted %d), want %v", p, got, v.Count(p), want)
		}
		from := fmt.Sprintf("%s%d", p, r.IntN(400))
		if got, want := keys(v, p, from), m.keys(p, from); !slices.Equal(got, want) || v.CountFrom(p, from) != len(want) {
			t.Fatalf("prefix %q from %q: %v (counted %d), want %v", p, from, got, v.CountFrom(p, from), want)
		}
	}
	if err := sound(v.root, true); err != nil {
		t.Fatalf("revision %d: %v", v.Revision(), err)
	}
}

// sound checks the invariants of a tree.
func sound(n *node, root bool) error {
	switch {
	case n == nil:
		return nil
	case len(n.keys) > maxEntries || len(n.keys) == 0:
		return fmt.Errorf("node of %d entries", len(n.keys))
	case n.kids == nil && (len(n.vals) != len(n.keys) || n.count != len(n.vals)):
		return errors.New("leaf with another number of values than it says")
	case n.kids != nil && (len(n.kids) != len(n.keys) || root && len(n.kids) < 2):
		return fmt.Errorf("%d children, %d bounds", len(n.kids), len(n.keys))
	case !slices.IsSorted(n.keys):
		return errors.New("keys out of order")
	}
	count := 0
	for i, k := range n.kids {
		if err := sound(k, false); err != nil {
			return err
		}
		if k.keys[0] < n.keys[i] && i > 0 {
			return errors.New("child begins before its bound")
		}
		if i+1 < len(n.keys) && k.keys[len(k.keys)-1] >= n.keys[i+1] {
			return errors.New("child ends after the next bound")
		}
		count += k.count
	}
	if n.kids != nil && count != n.count {
		return fmt.Errorf("count %d, should be %d", n.count, count)
	}
	return nil
}

// TestAgainstModel changes the store at random, and compares it and all its past
// with a simple map.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := New(Config{HistoryEvents: 3000})
		now := model{}
		past := map[int64]model{}
		views := map[int64]*View{}
		for step := range 6000 {
			key := fmt.Sprintf("/%c/%d", 'a'+r.IntN(3), r.IntN(400))
			// Grow, shrink, grow: splits and merges at every level.
			if grow := (step/1500)%2 == 0; grow == (r.IntN(4) > 0) {
				kv, err := put(s, key, "", -1)
				if err != nil {
					t.Fatal(err)
				}
				now[key] = kv.ModRevision
			} else if _, err := del(s, key, -1); err == nil {
				delete(now, key)
			}
			if step%300 == 0 {
				m := model{}
				for k, v := range now {
					m[k] = v
				}
				past[s.Revision()], views[s.Revision()] = m, s.View()
			}
		}
		now.compare(t, s.View(), r)
		for rev, m := range past {
			m.compare(t, views[rev], r) // a view that was kept
			for range 2 {               // rebuilt, and from the cache
				v, err := s.ViewAt(rev)
				if rev < s.CompactRevision() {
					if !errors.Is(err, ErrCompacted) {
						t.Fatalf("view at %d, compacted to %d: %v", rev, s.CompactRevision(), err)
					}
					continue
				}
				if err != nil || v.Revision() != rev {
					t.Fatalf("view at %d: %v", rev, err)
				}
				m.compare(t, v, r)
				if v.Bytes() != views[rev].Bytes() {
					t.Fatalf("view at %d of %d bytes, was %d", rev, v.Bytes(), views[rev].Bytes())
				}
			}
		}
		if _, err := s.ViewAt(s.Revision() + 1); !errors.Is(err, ErrFutureRevision) {
			t.Fatalf("a view of the future: %v", err)
		}
	}
}

func TestOrderedInsertsFillTheNodes(t *testing.T) {
	s := New(Config{})
	s.Update(func(tx *Txn) {
		for i := range 100_000 {
			tx.Put(fmt.Sprintf("/k%06d", i), nil, 0, 0)
		}
	})
	if err := sound(s.View().root, true); err != nil {
		t.Fatal(err)
	}
	leaves := 0
	var walk func(*node)
	walk = func(n *node) {
		if n.kids == nil {
			leaves++
		}
		for _, k := range n.kids {
			walk(k)
		}
	}
	walk(s.View().root)
	if fill := 100_000 / leaves; fill < maxEntries*3/4 {
		t.Errorf("%d keys a leaf", fill)
	}
}

func TestDecodedSlot(t *testing.T) {
	kv := &KeyValue{}
	if kv.Decoded() != nil {
		t.Error("a new version is decoded already")
	}
	kv.SetDecoded("a")
	kv.SetDecoded(7) // of another type
	if kv.Decoded() != 7 {
		t.Errorf("decoded is %v", kv.Decoded())
	}
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{
		"": "", "/a/": "/a0", "a\xff": "b", "\xff\xff": "", "\xfe": "\xff", "a\xc3": "a\xc4", "\xffa": "\xffb",
	} {
		if got := prefixEnd(prefix); got != want {
			t.Errorf("after %q comes %q, want %q", prefix, got, want)
		}
	}
}
