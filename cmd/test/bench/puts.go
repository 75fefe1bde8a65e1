package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// benchPuts runs the Go benchmarks of puts through Raft and of etcd on the same
// disk, and gives their puts/s figures.
func benchPuts(ctx context.Context) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "Puts", "-benchtime", "3s", "./cluster/consensus")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go test -bench Puts: %w\n%s", err, out.String())
	}
	var rows []row
	etcd := map[string]float64{}
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		for i := range f {
			if i == 0 || f[i] != "puts/s" {
				continue
			}
			v, err := strconv.ParseFloat(f[i-1], 64)
			if err != nil {
				return nil, fmt.Errorf("benchmark line %q: %w", line, err)
			}
			name, clients, _ := strings.Cut(strings.TrimPrefix(f[0], "Benchmark"), "/")
			if strings.Contains(name, "Etcd") {
				etcd[clients] = v
			}
			rows = append(rows, row{What: "1 KiB put, fsync: " + name + " " + clients, Value: v, Unit: "/s", AtLeast: true})
		}
	}
	for i := range rows {
		if !strings.Contains(rows[i].What, "Etcd") {
			clients := rows[i].What[strings.LastIndex(rows[i].What, " ")+1:]
			rows[i].Budget = etcd[clients]
		}
	}
	return rows, nil
}
