package consensus

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/skiff-sh/skiff/fsm"
)

var (
	benchClients = []int{1, 16, 100}
	benchMembers = []int{1, 3, 5}
	benchValue   = bytes.Repeat([]byte("v"), 1024)
)

// benchPuts lets so many clients put b.N values of 1 KiB in all.
func benchPuts(b *testing.B, clients int, put func(client, i int) error) {
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for c := range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := put(c, int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "puts/s")
}

// eachSize runs a benchmark for each number of members and of clients.
func eachSize(b *testing.B, run func(b *testing.B, members, clients int)) {
	for _, m := range benchMembers {
		b.Run(fmt.Sprintf("members=%d", m), func(b *testing.B) {
			for _, c := range benchClients {
				b.Run(fmt.Sprintf("clients=%d", c), func(b *testing.B) { run(b, m, c) })
			}
		})
	}
}

// BenchmarkPut is what a cluster stores durably: each put is in the logs of a
// majority, with fsync, and applied. Clients write through all members.
// BenchmarkEtcdPut is the same work for etcd on the same disk: compare the two of
// one run. Members of etcd are processes, ours share one.
func BenchmarkPut(b *testing.B) {
	eachSize(b, func(b *testing.B, n, clients int) {
		members := []*member{}
		if n == 1 {
			members = append(members, single(b, b.TempDir()))
			members[0].awaitReady(b)
		} else {
			members = cluster(b, n, steady)
		}
		b.ResetTimer()
		benchPuts(b, clients, func(c, i int) error {
			op := fsm.Op{Type: fsm.Put, Key: fmt.Sprintf("/registry/bench/c%d/k%d", c, i%10_000), Value: benchValue, Expect: fsm.Any}
			_, err := members[c%n].Propose(b.Context(), fsm.One(op))
			return err
		})
		b.StopTimer()
		for _, m := range members {
			m.stop(b)
		}
	})
}

// BenchmarkEtcdPut needs the etcd program of Debian's etcd-server.
func BenchmarkEtcdPut(b *testing.B) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		b.Skip("etcd is not installed: ", err)
	}
	eachSize(b, func(b *testing.B, members, clients int) {
		endpoints := startEtcd(b, path, members)
		// One connection each, as separate clients have.
		var kvs []*clientv3.Client
		for i := range max(clients, members) {
			c, err := clientv3.New(clientv3.Config{Endpoints: endpoints[i%members : i%members+1], DialTimeout: 30 * time.Second, Logger: zap.NewNop()})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Get(b.Context(), "x"); err != nil { // it leads or follows
				b.Fatal(err)
			}
			kvs = append(kvs, c)
		}
		b.ResetTimer()
		benchPuts(b, clients, func(c, i int) error {
			_, err := kvs[c].Put(b.Context(), fmt.Sprintf("/registry/bench/c%d/k%d", c, i%10_000), string(benchValue))
			return err
		})
		b.StopTimer()
	})
}

// startEtcd runs a cluster of etcd until the benchmark ends, and returns its
// addresses.
func startEtcd(b *testing.B, path string, members int) (endpoints []string) {
	b.Helper()
	addr := func() string {
		l := listen(b, "127.0.0.1:0")
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	var peers, all []string
	for i := range members {
		endpoints, peers = append(endpoints, addr()), append(peers, addr())
		all = append(all, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range members {
		dir := b.TempDir()
		out, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command(path, "--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", endpoints[i],
			"--advertise-client-urls", endpoints[i], "--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(all, ","))
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			out.Close()
		})
	}
	return endpoints
}

// BenchmarkRestart starts a server on 100,000 objects of 1 KiB until it is ready.
func BenchmarkRestart(b *testing.B) {
	m := single(b, b.TempDir())
	m.awaitReady(b)
	var wg sync.WaitGroup
	for w := range 100 {
		wg.Go(func() {
			for i := range 100 {
				var ops []fsm.Op
				for j := range 10 {
					ops = append(ops, fsm.Op{Type: fsm.Put, Key: fmt.Sprintf("/registry/bench/%d/%d", w, i*10+j), Value: benchValue})
				}
				if _, err := m.Propose(b.Context(), fsm.Batch(ops...)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m.stop(b)
	for b.Loop() {
		m = m.restart(b)
		m.awaitReady(b)
		b.StopTimer()
		if n := m.config.FSM.Store().View().Len(); n != 100_000 {
			b.Fatal(n)
		}
		m.stop(b)
		b.StartTimer()
	}
}
