package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	// putRounds is how often skiff and etcd take turns: what else the machine does
	// meanwhile should hit both alike.
	putRounds = 3
	putTime   = "1s" // of one turn
)

var (
	putClients = []string{"1", "16", "100"}
	putMembers = []string{"1", "3", "5"} // of the cluster, all on this machine and disk
)

// benchPuts runs the Go benchmarks of puts through Raft and of etcd in turns,
// and gives the medians. The temporary directory of both is on the same disk.
func benchPuts(ctx context.Context) ([]row, error) {
	dir, err := os.MkdirTemp("", "skiff-bench-puts-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "consensus.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./cluster/consensus").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the benchmark of puts: %w\n%s", err, out)
	}
	var rows []row
	for _, members := range putMembers {
		for _, clients := range putClients {
			r, err := comparePuts(ctx, binary, members, clients)
			if err != nil {
				return nil, err
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

func comparePuts(ctx context.Context, binary, members, clients string) (row, error) {
	got := map[string][]float64{}
	for range putRounds {
		for _, name := range []string{"Put", "EtcdPut"} {
			v, err := putRate(ctx, binary, name, members, clients)
			if err != nil {
				return row{}, err
			}
			got[name] = append(got[name], v)
		}
	}
	ours, etcd := median(got["Put"]), median(got["EtcdPut"])
	what := fmt.Sprintf("durable put of 1 KiB, %s clients", clients)
	if clients == "1" {
		what = "durable put of 1 KiB, 1 client"
	}
	if members != "1" {
		what += ", " + members + " servers"
	}
	return row{What: what, Value: ours, Unit: "/s", Budget: etcd, AtLeast: true, Upstream: fmt.Sprintf("etcd now: %.0f /s", etcd)}, nil
}

// putRate runs one benchmark once and reads its puts/s.
func putRate(ctx context.Context, binary, name, members, clients string) (float64, error) {
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^$", "-test.benchtime", putTime,
		"-test.bench", fmt.Sprintf("^Benchmark%s$/^members=%s$/^clients=%s$", name, members, clients))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("benchmark %s with %s members and %s clients: %w\n%s", name, members, clients, err, out.String())
	}
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		if i := slices.Index(f, "puts/s"); i > 0 {
			return strconv.ParseFloat(f[i-1], 64)
		}
	}
	return 0, fmt.Errorf("benchmark %s with %s members and %s clients gave no puts/s; is etcd installed?\n%s", name, members, clients, out.String())
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
