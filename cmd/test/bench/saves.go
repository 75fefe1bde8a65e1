package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cmd/dev"
)

const (
	// saveRounds is how often writes are measured with and without a save.
	saveRounds = 5
	// quietTime is how long writes are measured without one, in each round.
	quietTime = 5 * time.Second
	// writers write with a pause: what is measured is waiting, not throughput.
	writers    = 4
	writePause = 10 * time.Millisecond
)

// whileSaving measures writes with and without a save, in turns.
func whileSaving(ctx context.Context, where string, cfg *rest.Config, save func(context.Context) (time.Duration, error)) ([]row, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.ContentType = -1, "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	var quiet, busy, saves []time.Duration
	for i := range saveRounds {
		before, cancel := context.WithTimeout(ctx, quietTime)
		took, err := writeUntil(before, client, fmt.Sprintf("quiet-%d", i))
		cancel()
		if err != nil {
			return nil, err
		}
		quiet = append(quiet, took...)
		during, cancel := context.WithCancel(ctx)
		var saved error
		var d time.Duration
		go func() {
			defer cancel()
			d, saved = save(ctx)
		}()
		took, err = writeUntil(during, client, fmt.Sprintf("busy-%d", i))
		if err = errors.Join(err, saved); err != nil {
			return nil, err
		}
		busy, saves = append(busy, took...), append(saves, d)
	}
	slices.Sort(quiet)
	slices.Sort(busy)
	slices.Sort(saves)
	p99 := func(d []time.Duration) float64 { return float64(d[len(d)*99/100].Microseconds()) / 1000 }
	return []row{
		{What: "1 GB of state" + where + ": snapshot save and verify, median", Value: saves[len(saves)/2].Seconds(), Unit: "s"},
		{What: "1 GB of state" + where + ": p99 of a write", Value: p99(quiet), Unit: "ms"},
		{What: "1 GB of state" + where + ": p99 of a write during a save", Value: p99(busy), Unit: "ms", Budget: 2 * p99(quiet)},
		{What: "1 GB of state" + where + ": slowest write during a save", Value: float64(busy[len(busy)-1].Microseconds()) / 1000, Unit: "ms"},
	}, nil
}

// writeUntil writes small objects until ctx ends and gives how long each took.
func writeUntil(ctx context.Context, client kubernetes.Interface, name string) ([]time.Duration, error) {
	var mu sync.Mutex
	var out []time.Duration
	var errs []error
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d-%d", name, w, i)}, Data: map[string]string{"key": strings.Repeat("x", 256)}}
				begin := time.Now()
				_, err := client.CoreV1().ConfigMaps(namespace).Create(context.WithoutCancel(ctx), m, metav1.CreateOptions{})
				took := time.Since(begin)
				mu.Lock()
				out = append(out, took)
				// A change of leader on a busy machine counts as a slow write.
				if apierrors.IsTimeout(err) || apierrors.IsServiceUnavailable(err) {
					fmt.Fprintf(os.Stderr, "bench: %s after %v: %v\n", m.Name, took, err)
					err = nil
				}
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
				time.Sleep(writePause)
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// settle is how long three servers on one disk are given to write down what they
// were filled with.
const settle = 20 * time.Second

// benchSaves measures with three servers what a save of 1 GB does to writes.
func benchSaves(ctx context.Context, binary string) (rows []row, err error) {
	parent, err := os.MkdirTemp("", "skiff-bench-saves-")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(parent, "cluster")
	defer func() {
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, downErr := dev.Down(clean, dir)
		err = errors.Join(err, downErr, os.RemoveAll(parent))
	}()
	d, err := dev.Up(ctx, dev.Config{Dir: dir, Binary: binary, Servers: 3, ServerArgs: []string{"--disable-agent", "--snapshot-schedule", "off"}})
	if err != nil {
		return nil, fmt.Errorf("cluster of three servers: %w", err)
	}
	st, err := d.Members(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := d.RESTConfig(ctx, st.Leader)
	if err != nil {
		return nil, err
	}
	if err := fill(ctx, cfg, 50_000, 20<<10); err != nil {
		return nil, err
	}
	time.Sleep(settle)
	if err := d.AwaitVoters(ctx, time.Minute); err != nil {
		return nil, err
	}
	kubeconfig, err := d.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	return whileSaving(ctx, ", 3 servers", cfg, func(ctx context.Context) (time.Duration, error) {
		begin := time.Now()
		out, err := exec.CommandContext(ctx, binary, "snapshot", "save", "--kubeconfig", kubeconfig, "--force", filepath.Join(parent, "saved.snap")).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return time.Since(begin), err
	})
}

// fill creates ConfigMaps of about size bytes through the API.
func fill(ctx context.Context, cfg *rest.Config, objects, size int) error {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Timeout, cfg.ContentType = -1, time.Minute, "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	const at = 8
	errs := make([]error, at)
	var wg sync.WaitGroup
	for w := range at {
		wg.Go(func() {
			for i := w; i < objects && ctx.Err() == nil && errs[w] == nil; i += at {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%07d", i)},
					Data: map[string]string{"key": strings.Repeat(fmt.Sprintf("%08x", uint32(i*2654435761)), size/8)}}
				_, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, m, metav1.CreateOptions{})
				for try := 0; try < 10 && (apierrors.IsTimeout(err) || apierrors.IsServiceUnavailable(err)); try++ { // three servers share one disk
					time.Sleep(time.Second)
					_, err = client.CoreV1().ConfigMaps(namespace).Create(ctx, m, metav1.CreateOptions{})
				}
				if !apierrors.IsAlreadyExists(err) {
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
