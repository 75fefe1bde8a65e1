package runtime

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func report(b *testing.B, name string, ds []time.Duration) {
	sort.Slice(ds, func(i, j int) bool { return ds[i] < ds[j] })
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(ds[len(ds)/10]), name+"-p10-ms")
	b.ReportMetric(ms(ds[len(ds)/2]), name+"-p50-ms")
	b.ReportMetric(ms(ds[len(ds)*99/100]), name+"-p99-ms")
}

// pss is a process's proportional memory in KiB.
func pss(pid int) (kib int) {
	f, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(f)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return kib
}

// BenchmarkPod measures sandbox and container, one pod after the other.
func BenchmarkPod(b *testing.B) {
	for _, seccomp := range []SeccompType{SeccompUnconfined, SeccompRuntimeDefault} {
		b.Run(string(seccomp), func(b *testing.B) {
			e := newEnv(b)
			ctx := context.Background()
			var sandbox, ctr, whole, remove, execs []time.Duration
			for b.Loop() {
				t0 := time.Now()
				s := e.sandbox()
				t1 := time.Now()
				c := e.container("sleep", "1000")
				c.Seccomp.Type = seccomp
				e.start(s, c)
				t2 := time.Now()
				if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"true"}}, nil, nil, nil, nil); err != nil || code != 0 {
					b.Fatal(code, err)
				}
				t3 := time.Now()
				if err := s.Remove(ctx); err != nil {
					b.Fatal(err)
				}
				sandbox = append(sandbox, t1.Sub(t0))
				ctr = append(ctr, t2.Sub(t1))
				whole = append(whole, t2.Sub(t0))
				execs = append(execs, t3.Sub(t2))
				remove = append(remove, time.Since(t3))
			}
			report(b, "sandbox", sandbox)
			report(b, "container", ctr)
			report(b, "pod", whole)
			report(b, "exec", execs)
			report(b, "remove", remove)
		})
	}
}

// BenchmarkExec runs `true` again and again in one container.
func BenchmarkExec(b *testing.B) {
	for _, seccomp := range []SeccompType{SeccompUnconfined, SeccompRuntimeDefault} {
		b.Run(string(seccomp), func(b *testing.B) {
			e := newEnv(b)
			ctx := context.Background()
			s := e.sandbox()
			c := e.container("sleep", "1000")
			c.Seccomp.Type = seccomp
			e.start(s, c)
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				if code, err := s.Exec(ctx, c.ID, ExecConfig{Args: []string{"true"}}, nil, nil, nil, nil); err != nil || code != 0 {
					b.Fatal(code, err)
				}
				took = append(took, time.Since(begin))
				time.Sleep(20 * time.Millisecond) // else the kernel's grace periods overlap
			}
			report(b, "exec", took)
		})
	}
}

// BenchmarkHundredPods starts 100 pods at once and weighs their shims.
func BenchmarkHundredPods(b *testing.B) {
	e := newEnv(b)
	ctx := context.Background()
	for b.Loop() {
		const n = 100
		sbs := make([]*Sandbox, n)
		var wg sync.WaitGroup
		t0 := time.Now()
		for i := range n {
			wg.Go(func() {
				s, err := e.r.CreateSandbox(ctx, SandboxConfig{PodUID: fmt.Sprintf("hundred-%d", i), Hostname: "h", LogDir: e.logs})
				if err != nil {
					b.Error(err)
					return
				}
				sbs[i] = s
				c := e.container("sleep", "1000")
				c.Seccomp.Type = SeccompRuntimeDefault
				if err := s.StartContainer(ctx, c); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(time.Since(t0).Seconds(), "start-s")
		time.Sleep(time.Second) // idle shims give memory back
		sum, top := 0, 0
		for _, s := range sbs {
			p := pss(s.PID())
			sum, top = sum+p, max(top, p)
		}
		b.ReportMetric(float64(sum)/n, "shim-pss-KiB")
		b.ReportMetric(float64(top), "shim-pss-max-KiB")
		t0 = time.Now()
		for _, s := range sbs {
			wg.Go(func() {
				if err := s.Remove(ctx); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(time.Since(t0).Seconds(), "remove-s")
	}
}
