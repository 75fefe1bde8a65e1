package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/servers"
)

// Version is what all members say that they are.
const Version = "0.1.0"

// evictAfter is how long pods wait on a node that is gone.
const evictAfter = 3 * time.Second

// server is one of the cluster's servers, which may be stopped and started.
type server struct {
	name string
	addr netip.Addr
	dir  string
	log  *slog.Logger

	mu   sync.Mutex
	s    *cluster.Server // nil: it is down
	stop context.CancelFunc
	done chan error
}

func newServer(i int, addr netip.Addr, dir string, log *slog.Logger) *server {
	name := fmt.Sprintf("server-%d", i)
	return &server{name: name, addr: addr, dir: filepath.Join(dir, name), log: log.With("host", name)}
}

func (s *server) api() string { return netip.AddrPortFrom(s.addr, apiPort).String() }

func (s *server) up(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	after := evictAfter
	c, err := cluster.New(cluster.Config{Name: s.name, DataDir: s.dir, BindAddress: s.addr, AdvertiseAddress: s.addr,
		Port: apiPort, RaftPort: raftPort, GossipPort: gossipPort, PodEvictionTimeout: &after, Version: Version, Logger: s.log})
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	run, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(run) }()
	s.mu.Lock()
	s.s, s.stop, s.done = c, stop, done
	s.mu.Unlock()
	select {
	case <-c.Ready():
		return nil
	case err := <-done:
		done <- err
		return fmt.Errorf("%s ended: %w", s.name, err)
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w", s.name, ctx.Err())
	}
}

func (s *server) down() error {
	s.mu.Lock()
	stop, done := s.stop, s.done
	s.s, s.stop = nil, nil
	s.mu.Unlock()
	if stop == nil {
		return nil
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// running returns the server, or nil if it is down.
func (s *server) running() *cluster.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s
}

// join makes this host a member of the cluster of another server, before up.
func (s *server) join(ctx context.Context, first string, token membership.Token) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	id, err := cluster.NodeID(s.dir)
	if err != nil {
		return err
	}
	answer, err := membership.Join(ctx, first, token, membership.JoinRequest{Role: membership.RoleServer, Name: s.name, NodeID: id, Version: Version,
		Address: s.addr.String(), APIPort: apiPort, RaftPort: raftPort, GossipPort: gossipPort})
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if err := pki.Install(filepath.Join(s.dir, "pki"), answer.PKI, nil); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return membership.SaveCluster(s.dir, &answer.Cluster)
}

// token asks for one that lets hosts of that role in.
func token(ctx context.Context, c kubernetes.Interface, role membership.Role) (membership.Token, error) {
	var got membership.NewToken
	body, err := encodeJSON(membership.TokenRequest{Role: role, TTL: 24 * time.Hour})
	if err != nil {
		return membership.Token{}, err
	}
	b, err := c.Discovery().RESTClient().Post().AbsPath(membership.TokensPath).SetHeader("Content-Type", "application/json").Body(body).DoRaw(ctx)
	if err != nil {
		return membership.Token{}, fmt.Errorf("token: %w", err)
	}
	if err := decodeJSON(b, &got); err != nil {
		return membership.Token{}, fmt.Errorf("token: %w", err)
	}
	return membership.ParseToken(got.Token)
}

// admin is an administrator over TLS, with any server that answers.
func admin(s *cluster.Server, all []*server) (kubernetes.Interface, error) {
	c, err := clientcmd.BuildConfigFromFlags("", s.KubeconfigPath())
	if err != nil {
		return nil, err
	}
	t, err := rest.TLSConfigFor(c)
	if err != nil {
		return nil, err
	}
	var list []servers.Server
	for _, o := range all {
		list = append(list, servers.Server{Address: o.api()})
	}
	return kubernetes.NewForConfig(&rest.Config{Host: servers.Host, Transport: servers.New("", list...).Wrap(servers.Transport(t)), QPS: -1})
}
