package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// filled is a store of 100,000 objects of 1 KiB in 100 namespaces.
func filled(b *testing.B) (*Store, []string) {
	s := New(Config{})
	value := make([]byte, 1024)
	var all []string
	s.Update(func(tx *Txn) {
		for ns := range 100 {
			for i := range 1000 {
				key := fmt.Sprintf("/registry/configmaps/ns%03d/object-%04d", ns, i)
				all = append(all, key)
				if _, err := tx.Put(key, value, 0, 0); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	return s, all
}

func BenchmarkPut(b *testing.B) {
	s, all := filled(b)
	value := make([]byte, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Update(func(tx *Txn) { tx.Put(all[i*7919%len(all)], value, -1, 0) })
	}
}

// BenchmarkBatch puts 100 keys at once, as a log entry with many commands does.
func BenchmarkBatch(b *testing.B) {
	s, all := filled(b)
	value := make([]byte, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Update(func(tx *Txn) {
			for j := range 100 {
				tx.Put(all[(i*100+j)*7919%len(all)], value, -1, 0)
			}
		})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/put")
}

func BenchmarkGet(b *testing.B) {
	s, all := filled(b)
	for i := 0; b.Loop(); i++ {
		if _, ok := s.View().Get(all[i*7919%len(all)]); !ok {
			b.Fatal("not there")
		}
	}
}

// BenchmarkRange lists one namespace of 1,000 objects.
func BenchmarkRange(b *testing.B) {
	s, _ := filled(b)
	for i := 0; b.Loop(); i++ {
		n := 0
		s.View().Ascend(fmt.Sprintf("/registry/configmaps/ns%03d/", i%100), "", func(*KeyValue) bool { n++; return true })
		if n != 1000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	s, _ := filled(b)
	for b.Loop() {
		if n := s.View().Count("/registry/configmaps/"); n != 100_000 {
			b.Fatal(n)
		}
	}
}

// BenchmarkViewAt rebuilds the store as it was 1,000 changes ago.
func BenchmarkViewAt(b *testing.B) {
	s, all := filled(b)
	for i := range 2000 {
		s.Update(func(tx *Txn) { tx.Put(all[i*7919%len(all)], nil, -1, 0) })
	}
	for i := int64(0); b.Loop(); i++ {
		if _, err := s.ViewAt(s.Revision() - 1000 - i%20); err != nil { // more than are cached
			b.Fatal(err)
		}
	}
}

// BenchmarkWatchFanOut tells each change to so many watchers; the time is that
// until the last has it. The others sleep on another resource.
func BenchmarkWatchFanOut(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watchers=%d", n), func(b *testing.B) {
			s := New(Config{})
			var told, woken atomic.Int64
			round := make(chan struct{}, 1)
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					for w := s.Watch("/registry/pods/", 1); ; {
						evs, _, err := w.Next(b.Context())
						if err != nil {
							return
						}
						for range evs {
							if told.Add(1)%int64(n) == 0 {
								round <- struct{}{}
							}
						}
					}
				})
				wg.Go(func() {
					for w := s.Watch("/registry/events/", 1); ; woken.Add(1) {
						if _, _, err := w.Next(b.Context()); err != nil {
							return
						}
					}
				})
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Update(func(tx *Txn) { tx.Put("/registry/pods/default/a", nil, -1, 0) })
				<-round
			}
			if w := woken.Load(); w != 0 {
				b.Errorf("watchers of another resource were woken %d times", w)
			}
		})
	}
}
