// Command run makes a simulated fleet and prints what it found: see package
// fleet.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"time"

	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cmd/test/fleet"
)

func main() {
	servers := flag.Int("servers", 3, "servers: 1 to 5")
	nodes := flag.Int("nodes", 100, "agents: 1 to 200")
	pods := flag.Int("pods", 3, "pods per node at rest")
	churn := flag.Duration("duration", 10*time.Minute, "how long nodes, pods and leaders come and go; 0: not at all")
	warm := flag.Duration("warm", time.Minute, "churn before the comparison begins")
	idle := flag.Duration("idle", 0, "measure for so long what an idle cluster costs")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the churn")
	verbose := flag.Bool("v", false, "show what members log")
	out := flag.String("out", "", "write the report to this file, as JSON")
	profiles := flag.String("pprof", "", "serve profiles at this address, as with go tool pprof")
	flag.Parse()
	if flag.NArg() > 0 || *servers < 1 || *servers > 5 || *nodes < 1 || *nodes > 200 || *pods < 1 || *pods > 100 {
		flag.Usage()
		os.Exit(2)
	}
	level := slog.LevelError
	if *verbose {
		level = slog.LevelInfo
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go's
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *profiles != "" {
		go func() {
			if err := http.ListenAndServe(*profiles, nil); err != nil { // the handlers of net/http/pprof
				fmt.Fprintln(os.Stderr, "fleet: -pprof:", err)
			}
		}()
	}
	dir, err := os.MkdirTemp("", "skiff-fleet")
	if err == nil {
		fmt.Printf("seed %d\n", *seed)
		var report fleet.Report
		report, err = fleet.Run(ctx, fleet.Config{Servers: *servers, Nodes: *nodes, PodsPerNode: *pods, Churn: *churn, Warm: *warm, Idle: *idle, Seed: *seed,
			Dir: dir, Logger: logger, Say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
		if b, jsonErr := json.MarshalIndent(report, "", "  "); jsonErr == nil && *out != "" {
			jsonErr = os.WriteFile(*out, append(b, '\n'), 0o644)
			if err == nil {
				err = jsonErr
			}
		}
		os.RemoveAll(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}
