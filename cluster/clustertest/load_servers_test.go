//go:build integration || soak

package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
)

// serverEnv makes the test binary a server.
const serverEnv = "SKIFF_CLUSTERTEST_SERVER"

// apiServer is a server in a process of its own, so that it can be killed.
type apiServer struct {
	Name, Addr, Dir string
	JoinHost, Token string
	cmd             *exec.Cmd
	client          kubernetes.Interface
	config          *rest.Config
	output          *os.File
}

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	if s := os.Getenv(serverEnv); s != "" {
		if err := serve(s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve is the server's process.
func serve(spec string) error {
	var s apiServer
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	ip, err := netip.ParseAddr(s.Addr)
	if err != nil {
		return err
	}
	c := cluster.Config{Name: s.Name, DataDir: s.Dir, BindAddress: ip, AdvertiseAddress: ip, Version: "0.1.0",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if known, err := membership.LoadCluster(s.Dir); err != nil {
		return err
	} else if s.Token != "" && known == nil {
		if err := s.join(); err != nil {
			return err
		}
	}
	server, err := cluster.New(c)
	if err != nil {
		return err
	}
	return server.Run(context.Background())
}

func (s *apiServer) join() error {
	id, err := cluster.NodeID(s.Dir)
	if err != nil {
		return err
	}
	token, err := membership.ParseToken(s.Token)
	if err != nil {
		return err
	}
	a, err := membership.Join(context.Background(), s.JoinHost, token, membership.JoinRequest{Role: membership.RoleServer, Name: s.Name, NodeID: id,
		Version: "0.1.0", Address: s.Addr, APIPort: cluster.DefaultPort, RaftPort: cluster.DefaultRaftPort, GossipPort: cluster.DefaultGossipPort})
	if err != nil {
		return err
	}
	if err := membership.SaveCluster(s.Dir, &a.Cluster); err != nil {
		return err
	}
	return pki.Install(filepath.Join(s.Dir, "pki"), a.PKI, nil)
}

// start starts the process.
func (s *apiServer) start(t *testing.T) {
	t.Helper()
	spec, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(os.Args[0], "-test.run=^$")
	s.cmd.Env = append(os.Environ(), serverEnv+"="+string(spec))
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (s *apiServer) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// connect waits until the server serves.
func (s *apiServer) connect(t *testing.T) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if s.config, err = clientcmd.BuildConfigFromFlags("", filepath.Join(s.Dir, "admin.kubeconfig")); err != nil {
			continue
		}
		s.config.QPS, s.config.Host = -1, fmt.Sprintf("https://%s:%d", s.Addr, cluster.DefaultPort)
		if s.client, err = kubernetes.NewForConfig(s.config); err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err = s.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	s.tail(t)
	t.Fatalf("%s is not ready: %v", s.Name, err)
}

func (s *apiServer) tail(t *testing.T) {
	b, _ := os.ReadFile(s.output.Name())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	t.Logf("last words of %s:\n%s", s.Name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
}

// ask sends a request of skiff's own API.
func (s *apiServer) ask(ctx context.Context, method, path, body string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, s.config.Host+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, answer)
}

// apiCluster starts three servers that vote.
func apiCluster(t *testing.T) (all []*apiServer) {
	t.Helper()
	for i := range 3 {
		s := &apiServer{Name: fmt.Sprintf("s%d", i+1), Addr: fmt.Sprintf("127.94.0.%d", i+1), Dir: t.TempDir()}
		var err error
		if s.output, err = os.CreateTemp(t.TempDir(), "out"); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			var made membership.NewToken
			if err := all[0].ask(t.Context(), "POST", membership.TokensPath, `{"role":"server","ttl":600000000000}`, &made); err != nil {
				t.Fatal(err)
			}
			s.JoinHost, s.Token = fmt.Sprintf("%s:%d", all[0].Addr, cluster.DefaultPort), made.Token
		}
		s.start(t)
		t.Cleanup(func() {
			s.kill()
			if t.Failed() {
				s.tail(t)
			}
			s.output.Close()
		})
		s.connect(t)
		all = append(all, s)
	}
	awaitVoters(t, all, 3)
	return all
}

// awaitVoters returns when a leader sees so many healthy voters.
func awaitVoters(t *testing.T, all []*apiServer, n int) (leader *apiServer) {
	t.Helper()
	var last error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, s := range all {
			var st membership.Status
			if err := s.ask(t.Context(), "GET", membership.StatusPath, "", &st); err != nil {
				last = err
				continue
			}
			voters := 0
			for _, m := range st.Members {
				if m.Voter && m.Healthy != nil && *m.Healthy {
					voters++
				}
			}
			for _, l := range all {
				if l.Name == st.Leader && voters >= n && st.Partial == "" {
					return l
				}
			}
		}
	}
	t.Fatalf("no leader of %d voters: %v", n, last)
	return nil
}
