package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// runAll runs tests and keeps their results: first those that may run beside
// others, then the serial ones.
func runAll(ctx context.Context, o options, s *suite, tests []test, results *results) error {
	var together, alone []test
	for _, t := range tests {
		if t.Serial {
			alone = append(alone, t)
		} else {
			together = append(together, t)
		}
	}
	r := &runner{o: o, s: s, results: results, total: len(tests)}
	if err := r.runChunks(ctx, chunks(together, o.chunk, o.shards, results.took), o.shards); err != nil {
		return err
	}
	return r.runChunks(ctx, chunks(alone, o.chunk, 1, results.took), 1)
}

// longTest is from when on a test has a process of its own.
const longTest = 60

// chunks cuts tests into what one process runs. Those that take long, by their
// label or in an earlier run, come first and alone, so that none is left over at
// the end; each shard gets several, so that none idles while another has many to
// do.
func chunks(tests []test, most, shards int, took map[string]float64) (out [][]test) {
	long := func(t test) bool { return t.Slow || took[t.Name] >= longTest }
	first := slices.DeleteFunc(slices.Clone(tests), func(t test) bool { return !long(t) })
	slices.SortStableFunc(first, func(a, b test) int { return cmp.Compare(took[b.Name], took[a.Name]) })
	for _, t := range first {
		out = append(out, []test{t})
	}
	rest := slices.DeleteFunc(slices.Clone(tests), long)
	size := min(most, max(1, len(rest)/(4*shards)))
	// Neighbours in the list are alike and take alike long: each chunk gets some
	// of all kinds.
	n := (len(rest) + size - 1) / size
	for i := range n {
		var c []test
		for j := i; j < len(rest); j += n {
			c = append(c, rest[j])
		}
		out = append(out, c)
	}
	return out
}

type runner struct {
	o       options
	s       *suite
	results *results
	total   int
	done    atomic.Int64
	process atomic.Int64
	print   sync.Mutex
}

func (r *runner) runChunks(ctx context.Context, list [][]test, shards int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan []test)
	var wg sync.WaitGroup
	for range shards {
		wg.Go(func() {
			for c := range next {
				if err := r.runChunk(ctx, c); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, c := range list {
		select {
		case next <- c:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// runChunk runs tests in one process and keeps the results. What a process that
// died has not told is a failure of its tests; what was interrupted has no result.
func (r *runner) runChunk(ctx context.Context, tests []test) error {
	if ctx.Err() != nil {
		return nil
	}
	base := filepath.Join(r.o.out, "logs", fmt.Sprintf("%s-%03d", time.Now().Format("150405"), r.process.Add(1)))
	log, err := os.Create(base + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"--kubeconfig=" + r.s.kubeconfig, "--ginkgo.timeout=" + r.o.limit.String()}
	for _, t := range tests {
		args = append(args, "--ginkgo.focus="+exactly(t.Name))
	}
	limited, cancel := context.WithTimeout(ctx, r.o.limit+time.Minute)
	defer cancel()
	reports, _, runErr := r.s.run(limited, base+".json", log, args...)
	if err := os.Remove(base + ".json"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	known := map[string]result{}
	for i := range reports {
		rep := &reports[i]
		if rep.LeafNodeType == "SynchronizedBeforeSuite" && rep.State == failed {
			return fmt.Errorf("the cluster is not as the tests want it: %s; see %s.log", cause(rep), base)
		}
		if rep.LeafNodeType == "It" && (rep.State != skipped || rep.Failure.Message != "") {
			known[rep.name()] = resultOf(rep, base+".log")
		}
	}
	var list []result
	for _, t := range tests {
		res, ok := known[t.Name]
		if !ok {
			res = result{Name: t.Name, Area: t.Area, State: failed, Cause: "its process ended before it ran", Log: base + ".log"}
			if runErr != nil {
				res.Cause += ": " + runErr.Error()
			}
		}
		list = append(list, res)
	}
	r.tell(list)
	return r.results.add(list...)
}

// exactly is the expression of one name. ginkgo matches it with the suite's own
// name before.
func exactly(name string) string { return " " + regexp.QuoteMeta(name) + "$" }

func (r *runner) tell(list []result) {
	r.print.Lock()
	defer r.print.Unlock()
	for _, t := range list {
		n := r.done.Add(1)
		fmt.Printf("%4d/%d  %-7s %6.1f s  %s\n", n, r.total, strings.ToUpper(t.State), t.Seconds, t.Name)
		if t.State == failed {
			fmt.Printf("          %s\n", t.Cause)
		}
	}
}
