package cluster

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/gossip"
)

// loadStep is how often the load of the machine is looked at.
const loadStep = 30 * time.Second

// ReportLoad tells the others, until ctx ends, what share of its processors the
// machine uses.
func ReportLoad(ctx context.Context, g *gossip.Gossip) {
	tick := time.NewTicker(loadStep)
	defer tick.Stop()
	busy, all := processorTime()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		b, a := processorTime()
		if a > all && b >= busy {
			load := uint8(100 * (b - busy) / (a - all))
			g.SetTags(func(t *gossip.Tags) { t.Load = load })
		}
		busy, all = b, a
	}
}

// ReportSpace tells the others, until ctx ends, about how much space is free
// where dir is: they look at it before they send a program here.
func ReportSpace(ctx context.Context, g *gossip.Gossip, dir string) {
	tick := time.NewTicker(loadStep)
	defer tick.Stop()
	var told uint64
	for {
		if free, err := freeMiB(dir); err == nil && (free < told-told/4 || free > told+told/4) {
			told = free
			g.SetTags(func(t *gossip.Tags) { t.Free = free })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// freeMiB is at least 1: 0 would say nothing.
func freeMiB(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return max(st.Bavail*uint64(st.Bsize)>>20, 1), nil
}

// processorTime reads the first line of /proc/stat: ticks that the processors
// worked, and all.
func processorTime() (busy, all uint64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return parseProcessorTime(string(line))
}

// parseProcessorTime reads "cpu user nice system idle iowait irq softirq steal
// ...": guests, after those, are in user already.
func parseProcessorTime(line string) (busy, all uint64) {
	for i, f := range bytes.Fields([]byte(line)) {
		if i == 0 || i > 8 {
			continue
		}
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, 0
		}
		all += n
		if i != 4 && i != 5 {
			busy += n
		}
	}
	return busy, all
}
