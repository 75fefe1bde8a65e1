package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// skiffAPI sends a request for one of skiff's own paths as config says.
func skiffAPI(t testing.TB, config *rest.Config, method, path, body string, out any) int {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(method, config.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
		}
	}
	return resp.StatusCode
}

// An agent joins a real server, reaches the API as its node, renews its
// certificate, is removed, and is told so.
func TestTheLifeOfAnAgent(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := newServer(t)
	var made membership.NewToken
	if code := skiffAPI(t, s.config, "POST", membership.TokensPath, `{"role":"agent","ttl":60000000000}`, &made); code != http.StatusOK {
		t.Fatalf("token: %d", code)
	}
	token, err := membership.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.config.Host, "https://")
	identity, err := membership.OpenIdentity(membership.IdentityConfig{
		Dir: filepath.Join(t.TempDir(), "agent"), Name: "worker", NodeID: "id-worker", Address: func() string { return "127.0.0.1" },
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.CSR()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := membership.Join(ctx, addr, token, membership.JoinRequest{Role: membership.RoleAgent, Name: "worker", NodeID: "id-worker",
		Version: "test", Address: "127.0.0.1", GossipPort: 1, CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	if answer.ClusterID == "" || len(answer.Servers) != 1 || answer.Settings.ServiceCIDR != s.cfg.ServiceCIDR {
		t.Errorf("answer %+v", answer.Cluster)
	}
	if err := identity.Install(answer.Cert, answer.CA); err != nil {
		t.Fatal(err)
	}
	node := agentConfig(t, s, identity)
	if c, err := identity.NodeConfig(ctx); err != nil || c.ClusterID != answer.ClusterID || c.Renew {
		t.Errorf("node configuration %+v, %v", c, err)
	}
	for path, want := range map[string]int{membership.StatusPath: 403, membership.TokensPath: 403, membership.MembersPath: 403, SnapshotPath: 403} {
		if code := skiffAPI(t, node(), "GET", path, "", nil); code != want {
			t.Errorf("a node gets %d for %s", code, path)
		}
	}
	within(t, 20*time.Second, "a lease of the node", func() bool {
		return skiffAPI(t, node(), "PUT", "/skiff/v1/lease", "{}", nil) == http.StatusOK
	})
	for range 2 {
		if err := identity.Renew(ctx, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if code := skiffAPI(t, node(), "POST", "/api/v1/nodes", `{"metadata":{"name":"worker"}}`, nil); code != http.StatusCreated {
		t.Errorf("create the node: %d", code)
	}
	var st Status
	within(t, 20*time.Second, "the status of both, with the leader's view", func() bool {
		st = Status{}
		code := skiffAPI(t, s.config, "GET", StatusPath, "", &st)
		return code == http.StatusOK && len(st.Members) == 2 && st.Leader == "test" && st.Partial == ""
	})

	var removed membership.Removed
	if code := skiffAPI(t, s.config, "DELETE", membership.MembersPath+"/worker", "", &removed); code != http.StatusOK || removed.ID != "id-worker" {
		t.Errorf("remove: %d, %+v", code, removed)
	}
	if _, err := s.client.CoreV1().Nodes().Get(ctx, "worker", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the node: %v", err)
	}
	if code := skiffAPI(t, node(), "GET", "/api/v1/nodes/worker", "", nil); code != http.StatusUnauthorized {
		t.Errorf("a removed node gets %d", code)
	}
	var refusal *membership.Refusal
	if err := identity.Run(ctx); !errors.As(err, &refusal) || !refusal.Removed || !strings.Contains(err.Error(), "removed from the cluster by skiff:admin") {
		t.Errorf("Run ended with %v", err)
	}
	if code := skiffAPI(t, s.config, "DELETE", membership.MembersPath+"/test", "", nil); code != http.StatusConflict {
		t.Errorf("the only server is removed: %d", code)
	}
	var list corev1.NodeList
	if code := skiffAPI(t, s.config, "GET", "/api/v1/nodes", "", &list); code != http.StatusOK || len(list.Items) != 0 {
		t.Errorf("nodes %v", list.Items)
	}
}

// agentConfig gives the credentials of the identity as they are.
func agentConfig(t testing.TB, s *testServer, i *membership.Identity) func() *rest.Config {
	return func() *rest.Config {
		t.Helper()
		cert, key, err := i.PEM()
		if err != nil {
			t.Fatal(err)
		}
		return &rest.Config{Host: s.config.Host, TLSClientConfig: rest.TLSClientConfig{CAData: i.CA(), CertData: cert, KeyData: key}}
	}
}
