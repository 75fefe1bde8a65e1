package membership

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// fakeLog applies commands at once, as a log of one member.
type fakeLog struct {
	mu    sync.Mutex
	fsm   *fsm.FSM
	index uint64
	down  error // of every call
	reads int
}

func (l *fakeLog) fails(err error) { l.mu.Lock(); l.down = err; l.mu.Unlock() }

func (l *fakeLog) Propose(_ context.Context, c fsm.Command) (fsm.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil {
		return fsm.Result{}, l.down
	}
	b, err := fsm.EncodeEntry(c)
	if err != nil {
		return fsm.Result{}, err
	}
	l.index++
	return l.fsm.Apply(&raft.Log{Index: l.index, Term: 1, Data: b}).([]fsm.Result)[0], nil
}

func (l *fakeLog) ReadIndex(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	return l.down
}

// asked is how many reads have begun.
func (l *fakeLog) asked() int { l.mu.Lock(); defer l.mu.Unlock(); return l.reads }

// fakeRaft is a configuration with a leader that knows who is up.
type fakeRaft struct {
	mu       sync.Mutex
	members  []RaftMember
	leader   string
	unheard  int   // so many answers of MemberStats are those of a leader that has heard of nobody yet
	refuse   error // of Remove
	onRemove func(id string)
	promoted []string
	looked   int // calls of Members
	methods  map[string]func(context.Context, string, []byte) ([]byte, error)
}

func (r *fakeRaft) Stats() consensus.Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return consensus.Stats{ClusterID: "c1", LeaderID: r.leader, State: "Follower", Term: 3}
}

func (r *fakeRaft) Members() []RaftMember {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked++
	var out []RaftMember
	for _, m := range r.members {
		out = append(out, RaftMember{ID: m.ID, Address: m.Address, Voter: m.Voter})
	}
	return out
}

func (r *fakeRaft) MemberStats(context.Context) ([]RaftMember, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader == "" {
		return nil, consensus.ErrNoLeader
	}
	all := slices.Clone(r.members)
	if r.unheard > 0 {
		r.unheard--
		for i := range all {
			all[i].Healthy = all[i].ID == r.leader
		}
	}
	return all, nil
}

func (r *fakeRaft) Remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.onRemove != nil {
		r.onRemove(id)
	}
	if r.refuse != nil {
		return r.refuse
	}
	n := len(r.members)
	if r.members = slices.DeleteFunc(r.members, func(m RaftMember) bool { return m.ID == id }); len(r.members) == n {
		return consensus.ErrNotMember
	}
	return nil
}

func (r *fakeRaft) HandOver(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader != "id-a" {
		return nil
	}
	for _, m := range r.members {
		if m.ID != "id-a" && m.Voter && m.Healthy {
			r.leader = m.ID
			return nil
		}
	}
	return consensus.ErrQuorumRisk
}

func (r *fakeRaft) Promote(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promoted = append(r.promoted, id)
	return nil
}

func (r *fakeRaft) CallLeader(ctx context.Context, method string, body []byte) ([]byte, error) {
	if h := r.methods[method]; h != nil {
		return h(ctx, "", body)
	}
	return nil, errors.New("unknown method")
}

// bench is a Service of server "a" with fakes around it, and its API port.
type bench struct {
	*Service
	store  *store.Store
	log    *fakeLog
	raft   *fakeRaft
	pki    *pki.PKI
	kube   *fake.Clientset
	server *httptest.Server

	mu        sync.Mutex
	peers     []Peer
	offset    time.Duration // of the service's clock
	stopped   time.Time     // where the clock stands still, if not zero
	date      time.Time     // that the API port says, if not zero
	forgotten []string
	shown     []string // Authorization headers that came
}

func (b *bench) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopped.IsZero() {
		return b.stopped.Add(b.offset)
	}
	return time.Now().Add(b.offset)
}

// stop keeps the service's clock where it is; offset moves it.
func (b *bench) stop() { b.mu.Lock(); b.stopped = time.Now(); b.mu.Unlock() }

func (b *bench) setPeers(p ...Peer) { b.mu.Lock(); b.peers = p; b.mu.Unlock() }

func peer(name, id, ip string, role Role, state State) Peer {
	return Peer{Server: Server{Name: name, ID: id, Address: netip.MustParseAddr(ip), APIPort: 6443, RaftPort: 6444, GossipPort: 6445},
		Role: role, Version: "1.4.0", State: state, Since: time.Now().Add(-time.Minute)}
}

func newPKI(t testing.TB) *pki.PKI {
	t.Helper()
	p, err := pki.Open(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve runs h with a certificate of p of that name.
func serve(t testing.TB, p *pki.PKI, commonName string, h http.Handler) *httptest.Server {
	t.Helper()
	leaf, err := p.Leaf(pki.Request{CommonName: commonName, Organization: []string{nodesGroup}, DNSNames: []string{"x"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = pki.ServerTLS(leaf, pki.TLSOptions{Protos: []string{"http/1.1"}})
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{store: store.New(store.Config{}), raft: &fakeRaft{leader: "id-a"}, pki: newPKI(t), kube: fake.NewClientset()}
	b.raft.members = []RaftMember{{ID: "id-a", Address: "10.0.0.1:6444", Voter: true, Healthy: true, LastIndex: 5}}
	b.log = &fakeLog{fsm: fsm.New(b.store)}
	b.setPeers(peer("a", "id-a", "10.0.0.1", RoleServer, Alive))
	var err error
	b.Service, err = New(Config{
		Self: func() Server { return peer("a", "id-a", "10.0.0.1", RoleServer, Alive).Server }, Role: RoleServer, Version: "1.4.0",
		Store: b.store, Log: b.log, Raft: b.raft, Authority: b.pki,
		Peers: func() []Peer { b.mu.Lock(); defer b.mu.Unlock(); return slices.Clone(b.peers) },
		Forget: func(name string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.forgotten = append(b.forgotten, name)
		},
		Settings:    func() Settings { return Settings{ClusterDomain: "cluster.local", PodEvictionTimeout: 5 * time.Minute} },
		Trust:       func() (uint64, [][]byte) { return 7, [][]byte{[]byte("gossip key")} },
		ServerFiles: func() (map[string][]byte, error) { return map[string][]byte{"ca.key": []byte("secret")}, nil },
		Client:      func() kubernetes.Interface { return b.kube },
		Now:         b.now, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.raft.methods = b.Methods()
	b.server = serve(t, b.pki, apiServerName, b.port())
	return b
}

// port is the API port: open handlers, then the others for whom the certificate
// names.
func (b *bench) port() http.Handler {
	open, others := b.OpenHandlers(), b.Handlers()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.shown = append(b.shown, r.Header.Get("Authorization"))
		if !b.date.IsZero() {
			w.Header().Set("Date", b.date.UTC().Format(http.TimeFormat))
		}
		b.mu.Unlock()
		if h := open[r.URL.Path]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		u := &user.DefaultInfo{Name: "skiff:admin", Groups: []string{"system:masters"}}
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			c := r.TLS.VerifiedChains[0][0]
			if err := b.CheckCertificate(c); err != nil {
				http.Error(w, "Unauthorized", http.StatusUnauthorized)
				return
			}
			u = &user.DefaultInfo{Name: c.Subject.CommonName, Groups: c.Subject.Organization}
		}
		r = r.WithContext(request.WithUser(r.Context(), u))
		for path, h := range others {
			if r.URL.Path == path || strings.HasSuffix(path, "/") && strings.HasPrefix(r.URL.Path, path) {
				h.ServeHTTP(w, r)
				return
			}
		}
		http.NotFound(w, r)
	})
}

// level is that of the cluster from now on.
func (b *bench) level(t testing.TB, level int) {
	t.Helper()
	if _, err := b.log.Propose(t.Context(), fsm.SetLevel(b.store.View(), level)); err != nil {
		t.Fatal(err)
	}
}

// addr is where the API port is.
func (b *bench) addr() string { return b.server.Listener.Addr().String() }

func (b *bench) token(t testing.TB, role Role) Token {
	t.Helper()
	n, err := b.CreateToken(context.Background(), TokenRequest{Role: role, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := ParseToken(n.Token)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// agentRequest is one of an agent that could join.
func agentRequest(t testing.TB, name, id string) JoinRequest {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := csrFor(name, key)
	if err != nil {
		t.Fatal(err)
	}
	return JoinRequest{Role: RoleAgent, Name: name, NodeID: id, Version: "1.4.0", Address: "10.0.0.9", GossipPort: 6445, CSR: csr}
}

func serverRequest(name, id string) JoinRequest {
	return JoinRequest{Role: RoleServer, Name: name, NodeID: id, Version: "1.4.0", Address: "10.0.0.2", APIPort: 6443, RaftPort: 6444, GossipPort: 6445}
}

func (b *bench) join(t Token, r JoinRequest) (*Answer, error) {
	return Join(context.Background(), b.addr(), t, r)
}

func (b *bench) mustJoin(t testing.TB, r JoinRequest) *Answer {
	t.Helper()
	a, err := b.join(b.token(t, tokenRole(r.Role)), r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// refusedWith checks that err is one line, final, and says want.
func refusedWith(t testing.TB, err error, want string) {
	t.Helper()
	var r *Refusal
	switch {
	case err == nil:
		t.Errorf("not refused, want %q", want)
	case !errors.As(err, &r):
		t.Errorf("%v is no Refusal", err)
	case !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n"):
		t.Errorf("refused with %q, want one line with %q", err, want)
	}
}

// certOf is the certificate that the port shows to a client.
func clientOf(t testing.TB, c *tls.Config) *http.Client {
	t.Helper()
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

func parseOne(t testing.TB, pem []byte) *x509.Certificate {
	t.Helper()
	c, err := parseCerts(pem)
	if err != nil {
		t.Fatal(err)
	}
	return c[0]
}

var (
	errTest       = fmt.Errorf("down: %w", consensus.ErrNoLeader)
	errQuorumRisk = fmt.Errorf("remove: %w", consensus.ErrQuorumRisk)
)

// expiredCert is a certificate for n's key that ended a year ago.
func expiredCert(p *pki.PKI, n *node) ([]byte, error) {
	files := p.Files()
	ca, err := parseCerts(files[pki.CACertFile])
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(files[pki.CAKeyFile])
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	year := 365 * 24 * time.Hour
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(5), Subject: n.Leaf().Subject, DNSNames: n.Leaf().DNSNames, IPAddresses: n.Leaf().IPAddresses,
		NotBefore: time.Now().Add(-2 * year), NotAfter: time.Now().Add(-year), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: n.Leaf().ExtKeyUsage}, ca[0], n.key.Public(), key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// foreignCert is a certificate for n's key of another cluster.
func foreignCert(t testing.TB, n *node) ([]byte, error) {
	t.Helper()
	return expiredCert(newPKI(t), n)
}
