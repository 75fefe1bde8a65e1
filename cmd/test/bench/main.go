// Command bench measures the budgets of one node against a real server on a
// throw-away host, what a node full of pods costs (memory, CPU, probes, logs,
// execs), what a cluster of three servers takes to get over the death of
// its leader and of a node, what many idle nodes cost, puts through Raft beside
// etcd with as many members on the same disk, snapshots, the upgrade of three
// servers, and the way back from the loss of all of them. It prints a table and
// writes the figures as JSON.
//
// Limits: a machine that does other work meanwhile shows in every figure.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/cmd/test/host"
)

// row is one line of the table.
type row struct {
	What     string  `json:"what"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	Budget   float64 `json:"budget,omitempty"` // 0: none
	AtLeast  bool    `json:"atLeast,omitempty"`
	Upstream string  `json:"upstream,omitempty"` // measured on such a machine
}

func (r row) verdict() string {
	switch {
	case r.Budget == 0 && r.Unit != "appends" && r.Unit != "requests": // none of these is the budget
		return ""
	case r.AtLeast && r.Value >= r.Budget, !r.AtLeast && r.Value <= r.Budget:
		return "met"
	}
	return "MISSED"
}

func main() {
	binary := flag.String("skiff", "bin/skiff", "the binary to measure")
	out := flag.String("out", "bench/results.json", "where the figures go")
	idle := flag.Duration("idle", 30*time.Second, "how long to watch the idle node")
	quick := flag.Bool("quick", false, "only the node: leave out the rest")
	only := flag.String("only", "", "measure only this: node, pods, probes, logs, exec, cluster, fleet, puts, snapshots, saves or operations")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *binary, *out, *idle, *quick, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

func bench(ctx context.Context, binary, out string, idle time.Duration, quick bool, only string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and network namespaces need root: try sudo make bench")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	parts := []struct {
		name    string
		measure func() ([]row, error)
	}{
		{"node", func() ([]row, error) { return measure(ctx, binary, idle) }},
		{"pods", func() ([]row, error) {
			return onServer(ctx, binary, nil, func(s *instance) ([]row, error) { return s.full(ctx, idle) })
		}},
		{"probes", func() ([]row, error) {
			return onServerWithBox(ctx, binary, func(s *instance) ([]row, error) { return s.probes(ctx, idle) })
		}},
		{"logs", func() ([]row, error) {
			return onServerWithBox(ctx, binary, func(s *instance) ([]row, error) { return s.logs(ctx) })
		}},
		{"exec", func() ([]row, error) {
			return onServerWithBox(ctx, binary, func(s *instance) ([]row, error) { return s.execs(ctx) })
		}},
		{"cluster", func() ([]row, error) { return benchCluster(ctx, binary, 30, 6) }},
		{"fleet", func() ([]row, error) { return benchFleet(ctx, 2*idle) }},
		{"puts", func() ([]row, error) { return benchPuts(ctx) }},
		{"snapshots", func() ([]row, error) { return benchSnapshots(ctx, binary) }},
		{"saves", func() ([]row, error) { return benchSaves(ctx, binary) }},
		{"operations", func() ([]row, error) { return benchOperations(ctx, binary) }},
	}
	var rows []row
	known := only == ""
	for _, p := range parts {
		if known = known || p.name == only; only != "" && p.name != only || quick && only == "" && p.name != "node" {
			continue
		}
		r, err := p.measure()
		rows = append(rows, r...)
		if err != nil {
			print(rows)
			return err
		}
	}
	if !known {
		return fmt.Errorf("-only %s: want node, pods, probes, logs, exec, cluster, fleet, puts, snapshots, saves or operations", only)
	}
	print(rows)
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

// figure prints v with three digits or, from 1000 on, as a whole number.
func figure(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func print(rows []row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tMEASURED\tBUDGET\t\tUPSTREAM")
	for _, r := range rows {
		budget := ""
		if r.Budget > 0 || r.verdict() != "" {
			budget = figure(r.Budget) + " " + r.Unit
		}
		fmt.Fprintf(w, "%s\t%s %s\t%s\t%s\t%s\n", r.What, figure(r.Value), r.Unit, budget, r.verdict(), r.Upstream)
	}
	w.Flush()
}

// instance is a server under measurement.
type instance struct {
	*host.Server
	config *rest.Config
	client kubernetes.Interface
	log    *bytes.Buffer

	started []row // what starting took
}

func measure(ctx context.Context, binary string, idle time.Duration) ([]row, error) {
	return onServer(ctx, binary, nil, func(s *instance) (rows []row, err error) {
		for _, step := range []func(context.Context) ([]row, error){
			func(ctx context.Context) ([]row, error) { return s.idle(ctx, idle) },
			s.createToRunning,
			s.hundredReplicas,
			s.creates,
		} {
			r, err := step(ctx)
			if err != nil {
				return nil, err
			}
			rows = append(rows, r...)
		}
		return append(s.started, rows...), nil
	})
}

// onServer starts a server on a host of its own, with further flags, and removes
// all of it after do.
func onServer(ctx context.Context, binary string, args []string, do func(*instance) ([]row, error)) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "skiff-bench-")
	if err != nil {
		return nil, err
	}
	h, err := host.New("skiff-bench", 251)
	if err != nil {
		return nil, err
	}
	log := &bytes.Buffer{}
	s := &instance{Server: &host.Server{Host: h, Binary: binary, DataDir: filepath.Join(dir, "data"), Log: log, Args: args}, log: log}
	defer func() {
		if err != nil {
			fmt.Fprintf(os.Stderr, "--- the server said\n%s\n", log.String())
		}
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, s.Reset(clean), h.Close(), os.RemoveAll(dir))
	}()
	if s.started, err = s.startUp(ctx); err != nil {
		return nil, err
	}
	return do(s)
}

func (s *instance) startUp(ctx context.Context) ([]row, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	if err := s.Start(); err != nil {
		return nil, err
	}
	if _, err := s.WaitAPI(ctx); err != nil {
		return nil, err
	}
	api := time.Since(begin)
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.QPS = "https://"+s.Host.Addr+":6443", -1
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	s.config = cfg
	if s.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, err
	}
	if err := s.awaitNode(ctx); err != nil {
		return nil, err
	}
	return []row{
		{What: "exec -> API ready, empty host", Value: api.Seconds(), Unit: "s", Budget: 0.5, Upstream: "2.5 s"},
		{What: "exec -> node Ready", Value: time.Since(begin).Seconds(), Unit: "s", Budget: 1.5, Upstream: "9.4 s"},
	}, nil
}
