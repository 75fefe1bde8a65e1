package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cmd/test/host"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
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
