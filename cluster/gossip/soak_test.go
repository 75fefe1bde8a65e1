//go:build soak

package gossip

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The long form: production timing. Limits are those the cluster is built on,
// with room for a busy machine; the figures are printed.

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestSoakDetection(t *testing.T) {
	for _, tc := range []struct {
		members, kills int
		median, worst  time.Duration
	}{
		{5, 20, 4 * time.Second, 8 * time.Second},
		{20, 10, 5 * time.Second, 9 * time.Second},
		{100, 6, 6 * time.Second, 12 * time.Second},
	} {
		t.Run(fmt.Sprint(tc.members), func(t *testing.T) {
			f := newFleet(t, Timing{})
			before, goroutines := heap(), runtime.NumGoroutine()
			begin := time.Now()
			f.grow(tc.members)
			t.Logf("all of %d met after %v", tc.members, time.Since(begin).Round(time.Millisecond))
			perMember := float64(heap()-before) / float64(tc.members) / 1024
			t.Logf("per member: %.0f KiB of heap and stacks, %.1f goroutines", perMember, float64(runtime.NumGoroutine()-goroutines)/float64(tc.members))
			time.Sleep(5 * time.Second)
			cpu, at := cpuTime(), time.Now()
			time.Sleep(15 * time.Second)
			t.Logf("idle CPU per member: %.3f %% of a core", 100*float64(cpuTime()-cpu)/float64(time.Since(at))/float64(tc.members))

			var each, all, gone []time.Duration
			for k := range tc.kills {
				time.Sleep(time.Duration(137*k%500) * time.Millisecond)
				running := f.running()
				victim := running[(k*7+tc.members/2)%len(running)]
				name, index := victim.cfg.Name, 0
				fmt.Sscanf(name, "n%d", &index)
				at := time.Now()
				if k%2 == 0 {
					victim.kill() // its host refuses connections
				} else {
					f.partition([]*runner{victim}, running, false) // its host is gone, too
				}
				took := map[*runner]time.Duration{}
				f.await("death is seen", func() bool {
					for _, r := range running {
						if _, ok := took[r]; !ok && r != victim && r.state(name) == Dead {
							took[r] = time.Since(at)
						}
					}
					return len(took) == len(running)-1
				})
				victim.kill()
				f.heal()
				last := time.Duration(0)
				for _, d := range took {
					each, last = append(each, d), max(last, d)
				}
				all = append(all, last)
				if k%2 == 1 {
					gone = append(gone, last)
				}
				f.start(index, nil)
				f.await("return", func() bool { return f.all(tc.members, Alive) })
			}
			t.Logf("%d members, %d deaths: one sees it after p50 %v p99 %v; all after p50 %v worst %v (if the host is gone: p50 %v)", tc.members, tc.kills,
				quantile(each, 0.5), quantile(each, 0.99), quantile(all, 0.5), quantile(all, 1), quantile(gone, 0.5))
			if p := quantile(all, 0.5); p > tc.median {
				t.Errorf("median %v, more than %v", p, tc.median)
			}
			if p := quantile(all, 1); p > tc.worst {
				t.Errorf("worst %v, more than %v", p, tc.worst)
			}
		})
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, int(q*float64(len(d))))].Round(10 * time.Millisecond)
}

// All cores burn for 30 s: nobody may be seen dead. Burning in other processes
// is what a host does; burning in the same one is harder, since Go's scheduler
// lets every waiter wait for all before it.
func TestSoakStarvation(t *testing.T) {
	for _, tc := range []struct {
		members int
		own     bool
	}{{5, false}, {5, true}, {20, false}, {20, true}, {100, false}, {100, true}} {
		t.Run(fmt.Sprintf("%d/own=%v", tc.members, tc.own), func(t *testing.T) {
			members := tc.members
			f := newFleet(t, Timing{})
			all := f.grow(members)
			time.Sleep(2 * time.Second)
			var deaths, suspects atomic.Int64
			seen := map[string]int{} // who was seen dead, and by how many at the most
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					now := map[string]int{}
					for _, r := range all {
						deaths.Add(int64(r.count(Dead)))
						for _, m := range r.Members() {
							if m.State == Dead {
								now[m.Name]++
							}
						}
						suspects.Add(int64(len(r.doubted())))
					}
					for name, n := range now {
						seen[name] = max(seen[name], n)
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
			var spin atomic.Bool
			spin.Store(true)
			var burners []*exec.Cmd
			for range 8 * runtime.NumCPU() {
				if tc.own {
					go func() {
						for spin.Load() {
						}
					}()
					continue
				}
				cmd := exec.Command("sh", "-c", "while :; do :; done")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				burners = append(burners, cmd)
			}
			time.Sleep(30 * time.Second)
			spin.Store(false)
			for _, cmd := range burners {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
			time.Sleep(5 * time.Second)
			cancel()
			<-done
			worst := 0
			for _, r := range all {
				worst = max(worst, r.Score())
			}
			t.Logf("%d members: %d sightings of false deaths, %d of doubts; worst score %d", members, deaths.Load(), suspects.Load(), worst)
			if deaths.Load() > 0 {
				t.Errorf("members were seen dead though they live, by so many at the most: %v", seen)
			}
		})
	}
}
