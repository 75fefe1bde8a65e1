package cluster

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/trust"
)

// host runs a server on a data directory as a process does: with the same ports
// each time, and again when it ends with ErrRestart.
type host struct {
	config Config
	cancel context.CancelFunc
	ended  chan error

	mu     sync.Mutex
	server *Server
	runs   int
}

func newHost(name, dir string) *host {
	c := testConfig(dir)
	c.Name, c.Listen = name, net.Listen
	c.Port, c.RaftPort = freePort(), freePort()
	return &host{config: c}
}

// boot starts the server and does not wait for it.
func (h *host) boot(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.ended = cancel, make(chan error, 1)
	s, err := New(h.config)
	if err != nil {
		t.Fatal(err)
	}
	h.set(s)
	go func() {
		for {
			err := s.Run(ctx)
			if !errors.Is(err, ErrRestart) || ctx.Err() != nil {
				h.ended <- err
				return
			}
			if s, err = New(h.config); err != nil {
				h.ended <- err
				return
			}
			h.set(s)
		}
	}()
	t.Cleanup(func() { h.halt(t) })
}

func (h *host) set(s *Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.server = s
	h.runs++
}

func (h *host) now() *Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.server
}

func (h *host) halt(t testing.TB) {
	t.Helper()
	if h.cancel == nil {
		return
	}
	h.cancel()
	h.cancel = nil
	if err := <-h.ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("%s ended with: %v", h.config.Name, err)
	}
}

// ready waits until the server serves.
func (h *host) ready(t testing.TB) *host {
	t.Helper()
	within(t, 40*time.Second, h.config.Name+" is ready", func() bool {
		select {
		case err := <-h.ended:
			h.ended <- err
			t.Fatalf("%s ended with: %v", h.config.Name, err)
		case <-h.now().Ready():
			return true
		default:
		}
		return false
	})
	return h
}

// inEpoch waits until the server is ready, in the epoch of that number.
func (h *host) inEpoch(t testing.TB, number uint64) {
	t.Helper()
	within(t, 60*time.Second, h.config.Name+" in the epoch", func() bool {
		s := h.now()
		select {
		case <-s.Ready():
			return s.epoch.Number == number
		default:
			return false
		}
	})
}

func (h *host) kube(t testing.TB) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(h.now().LoopbackClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *host) write(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := h.kube(t).CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("write %s on %s: %v", name, h.config.Name, err)
	}
}

func (h *host) has(t testing.TB, name string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := h.kube(t).CoreV1().ConfigMaps("default").Get(ctx, name, metav1.GetOptions{})
	return err == nil
}

// threeServers are a, b and c, all voters.
func threeServers(t testing.TB) []*host {
	t.Helper()
	first := newHost("a", t.TempDir())
	first.boot(t)
	first.ready(t)
	hosts := []*host{first}
	for _, name := range []string{"b", "c"} {
		h := newHost(name, t.TempDir())
		join(t, first, h)
		h.boot(t)
		hosts = append(hosts, h.ready(t))
	}
	allVote(t, first, 3)
	return hosts
}

// join lets a host into the cluster, as `skiff server --join` does.
func join(t testing.TB, at, h *host) {
	t.Helper()
	made, err := at.now().members.CreateToken(t.Context(), membership.TokenRequest{Role: membership.RoleServer, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	token, err := membership.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	c := h.config
	id, err := NodeID(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := membership.Join(t.Context(), strings.TrimPrefix(at.now().URL(), "https://"), token, membership.JoinRequest{Role: membership.RoleServer,
		Name: c.Name, NodeID: id, Version: c.Version, Address: "127.0.0.1", APIPort: c.Port, RaftPort: c.RaftPort, GossipPort: c.GossipPort})
	if err != nil {
		t.Fatal(err)
	}
	if err := membership.SaveCluster(c.DataDir, &a.Cluster); err != nil {
		t.Fatal(err)
	}
	if err := pki.Install(filepath.Join(c.DataDir, "pki"), a.PKI, nil); err != nil {
		t.Fatal(err)
	}
}

func allVote(t testing.TB, at *host, n int) {
	t.Helper()
	within(t, 60*time.Second, "all vote", func() bool { return len(at.now().node.Stats().Voters) == n })
}

// snapshotOf saves a snapshot through a host and gives its file.
func snapshotOf(t testing.TB, h *host) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snap")
	if _, err := backup.Save(t.Context(), h.now().Snapshot, path, backup.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// restore makes a host of a snapshot, with a copy of the cluster key.
func restore(t testing.TB, snapshot, keyFile string, h *host) {
	t.Helper()
	key, err := seal.ReadKey(keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = backup.Restore(t.Context(), snapshot, h.config.DataDir, backup.RestoreOptions{By: h.config.Name,
		Keys: func(state map[string][]byte) (map[string][]byte, error) {
			files, err := trust.Recover(state, key)
			if err != nil {
				return nil, err
			}
			return pki.OnDisk(files, key)
		},
		Files: func(info *backup.Info, state map[string][]byte) (map[string][]byte, error) {
			return RestoredFiles(info, state, key)
		}})
	if err != nil {
		t.Fatal(err)
	}
}

// A server on a restored snapshot does not begin while the cluster lives, even on
// a host that nobody knows. What makes a cluster out of several is in the
// integration tests.
func TestRestoreRefusesBesideALivingServer(t *testing.T) {
	a := newHost("a", t.TempDir())
	a.boot(t)
	a.ready(t)
	within(t, 20*time.Second, "a record", func() bool { _, ok := a.now().state.View().Get("/skiff/members/a"); return ok })
	snapshot := snapshotOf(t, a)
	z := newHost("z", filepath.Join(t.TempDir(), "data"))
	restore(t, snapshot, filepath.Join(a.config.DataDir, "pki", "cluster.key"), z)
	z.boot(t)
	err := <-z.ended
	z.cancel = nil
	if !errors.Is(err, ErrRefusedStart) || !strings.Contains(err.Error(), "use skiff restore --live") || !strings.Contains(err.Error(), "is alive: server a ") {
		t.Fatalf("it ended with %v", err)
	}
	a.halt(t)
	z.boot(t)
	z.ready(t)
	z.write(t, "first")
	z.inEpoch(t, 2)
	z.halt(t)
	z.boot(t) // once it has begun nobody is asked
	z.ready(t)
	if plan := z.now().recoveryPlan(t.Context(), false); !strings.Contains(plan.Refused, "nothing is to be recovered") {
		t.Errorf("recover of a cluster that works: %+v", plan)
	}
}

// The files of a stopped server are worked on under its lock, and it starts in the
// new epoch.
func TestRecoveryOfAStoppedServer(t *testing.T) {
	a := newHost("a", t.TempDir())
	a.boot(t)
	a.ready(t)
	a.write(t, "before")
	within(t, 20*time.Second, "it knows its cluster", func() bool {
		known, err := membership.LoadCluster(a.config.DataDir)
		return err == nil && known != nil
	})
	a.halt(t)
	s, err := OpenStopped(t.Context(), a.config.DataDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Plan(true); p.Refused == "" || s.Do(t.Context(), p, true) == nil {
		t.Errorf("rejoin of the only server: %+v", p)
	}
	p := s.Plan(false)
	if p.Server != "a" || p.Refused != "" || len(p.Doubts) != 1 || len(p.Members) != 1 || p.Index == 0 {
		t.Fatalf("plan %+v", p)
	}
	if err := s.Do(t.Context(), p, false); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("in spite of doubts: %v", err)
	}
	if err := s.Do(t.Context(), p, true); err != nil {
		t.Fatal(err)
	}
	a.boot(t)
	a.inEpoch(t, 2)
	if !a.has(t, "before") {
		t.Error("what it had is lost")
	}
	for dir, want := range map[string]string{t.TempDir(): "is not the data directory of a server", filepath.Join(t.TempDir(), "none"): "is not the data directory of a server"} {
		if _, err := OpenStopped(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
}
