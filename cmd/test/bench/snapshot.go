package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/host"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
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

// benchSnapshots measures saves and restores of 100,000 objects, and what a save
// of 1 GB does to writes, on one server.
func benchSnapshots(ctx context.Context, binary string) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "skiff-bench-snapshots-")
	if err != nil {
		return nil, err
	}
	h, err := host.New("skiff-bench", 251)
	if err != nil {
		return nil, err
	}
	log := &bytes.Buffer{}
	b := &snapshotBench{dir: dir, server: &host.Server{Host: h, Binary: binary, Log: log, Args: []string{"--disable-agent", "--snapshot-schedule", "off"}}}
	defer func() {
		if err != nil {
			fmt.Fprintf(os.Stderr, "--- the server said\n%s\n", log.String())
		}
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, b.server.Reset(clean), h.Close(), os.RemoveAll(dir))
	}()
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) ([]row, error){
		b.many,
		b.large,
	} {
		r, err := step(ctx)
		rows = append(rows, r...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

type snapshotBench struct {
	dir    string
	server *host.Server
}

func (b *snapshotBench) path(name string) string { return filepath.Join(b.dir, name) }

// begin makes a cluster and keeps its snapshot and key.
func (b *snapshotBench) begin(ctx context.Context) error {
	b.server.DataDir = b.path("first")
	if err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.server.Skiff(ctx, "snapshot", "save", "--data-dir", b.server.DataDir, b.path("first.snap")); err != nil {
		return err
	}
	return b.server.Stop()
}

func (b *snapshotBench) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := b.server.Start(); err != nil {
		return err
	}
	_, err := b.server.WaitAPI(ctx)
	return err
}

// restored makes a server of a snapshot with so many objects more, and tells how
// long that took from the call of restore until the API was ready.
func (b *snapshotBench) restored(ctx context.Context, name string, objects, size int) (time.Duration, error) {
	grown := b.path(name + ".snap")
	if err := grow(b.path("first.snap"), grown, objects, size); err != nil {
		return 0, err
	}
	defer os.Remove(grown)
	key := b.path("first/pki/cluster.key")
	b.server.DataDir = b.path(name)
	begin := time.Now()
	if _, err := b.server.Skiff(ctx, "snapshot", "restore", grown, "--data-dir", b.server.DataDir, "--key-file", key); err != nil {
		return 0, err
	}
	if err := b.start(ctx); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

func (b *snapshotBench) save(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	_, err := b.server.Skiff(ctx, "snapshot", "save", "--data-dir", b.server.DataDir, "--force", b.path("saved.snap"))
	return time.Since(begin), err
}

// many is about 100,000 objects of 1 KiB.
func (b *snapshotBench) many(ctx context.Context) ([]row, error) {
	restore, err := b.restored(ctx, "many", 100_000, 1<<10)
	if err != nil {
		return nil, err
	}
	var saves []time.Duration
	for range 3 {
		d, err := b.save(ctx)
		if err != nil {
			return nil, err
		}
		saves = append(saves, d)
	}
	slices.Sort(saves)
	return []row{
		{What: "100,000 objects: snapshot restore -> API ready", Value: restore.Seconds(), Unit: "s", Budget: 5},
		{What: "100,000 objects: snapshot save and verify, median of 3", Value: saves[1].Seconds(), Unit: "s", Budget: 2},
	}, b.server.Stop()
}

// large is about a state of 1 GB.
func (b *snapshotBench) large(ctx context.Context) ([]row, error) {
	if err := os.RemoveAll(b.path("many")); err != nil {
		return nil, err
	}
	if _, err := b.restored(ctx, "large", 250_000, 4<<10); err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", b.server.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.Host = "https://" + b.server.Host.Addr + ":6443"
	rows, err := whileSaving(ctx, "", cfg, b.save)
	if err != nil {
		return nil, err
	}
	return rows, b.server.Stop()
}

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

// grow copies a snapshot and adds ConfigMaps of about size bytes.
func grow(from, to string, objects, size int) (err error) {
	src, err := backup.Open(from, nil)
	if err != nil {
		return err
	}
	defer src.Close()
	r, err := fsm.NewReader(src)
	if err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	head := r.Header()
	next := head.Revision
	head.Revision += int64(objects)
	w, err := fsm.NewWriter(dst, head)
	if err != nil {
		return err
	}
	added := false
	add := func() error {
		for i := range objects {
			kv, err := bigMap(i, size)
			if err != nil {
				return err
			}
			next++
			kv.CreateRevision, kv.ModRevision = next, next
			if err := w.Add(kv); err != nil {
				return err
			}
		}
		added = true
		return nil
	}
	for {
		kv, err := r.Next()
		if !added && (err == io.EOF || err == nil && kv.Key > mapPrefix) {
			if err := add(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return w.Close()
		}
		if err != nil {
			return err
		}
		if err := w.Add(kv); err != nil {
			return err
		}
	}
}

// mapPrefix is that of the keys of a namespace that sorts before those there are.
const mapPrefix = "/registry/configmaps/bench/"

func bigMap(i, size int) (*store.KeyValue, error) {
	m := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%07d", i), Namespace: "bench", UID: "5dbb4e5a-74a0-4ac6-b2a1-5b0a4b4c0a3d", CreationTimestamp: metav1.Now()},
		Data:       map[string]string{"key": strings.Repeat(fmt.Sprintf("%08x", uint32(i*2654435761)), size/8)}}
	var out bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(m, &out); err != nil {
		return nil, err
	}
	return &store.KeyValue{Key: mapPrefix + m.Name, Value: out.Bytes()}, nil
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
				for try := 0; try < 10 && apierrors.IsTimeout(err); try++ { // three servers share one disk
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
