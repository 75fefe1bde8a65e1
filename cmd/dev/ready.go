package dev

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/cluster/membership"
)

// startLimit is how long a step of the start may take on a slow machine.
const startLimit = 5 * time.Minute

// awaitAPI returns when the server answers its readiness check.
func (p place) awaitAPI(ctx context.Context, n nodeState) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // only to see whether it is up
	}}
	for deadline := time.Now().Add(startLimit); ; {
		resp, err := client.Get("https://" + n.Addr.String() + ":6443/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		if proc, perr := p.skiff(n.Name); perr != nil || proc.state() == 0 {
			return fmt.Errorf("skiff of %s has ended: %s", n.Name, p.lastWords(n.Name, 3))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not serve the API: %w; see %s", n.Name, err, p.nodeFile(n.Name, "log"))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kubeconfig writes the administrator's kubeconfig, as the first server that
// runs has it now, to a file on this machine, and returns its path.
func (c *Cluster) Kubeconfig(ctx context.Context) (string, error) {
	s, err := c.p.load()
	if err != nil {
		return "", err
	}
	path := c.p.file("kubeconfig")
	last := errors.New("no server runs")
	for _, n := range s.Nodes {
		if n.Role == Agent {
			continue
		}
		if proc, err := c.p.skiff(n.Name); err != nil || !proc.runs() {
			continue
		}
		var b []byte
		err := c.p.inside(n.Name, []string{"mnt"}, func() (err error) {
			b, err = os.ReadFile(filepath.Join(c.p.nodeFile(n.Name, "data"), "admin.kubeconfig"))
			return err
		})
		if err != nil {
			last = err
			continue
		}
		return path, writeFile(path, b)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil // as it was
	}
	return "", fmt.Errorf("no kubeconfig yet: %w", last)
}

// RESTConfig is the administrator's way to the API of one server, or with ""
// as the kubeconfig has it.
func (c *Cluster) RESTConfig(ctx context.Context, server string) (*rest.Config, error) {
	path, err := c.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	if server != "" {
		s, err := c.p.load()
		if err != nil {
			return nil, err
		}
		n, err := s.node(server)
		if err != nil {
			return nil, err
		}
		cfg.Host = "https://" + n.Addr.String() + ":6443"
	}
	cfg.QPS, cfg.Timeout = -1, 10*time.Second
	return cfg, nil
}

// Client is a client with RESTConfig.
func (c *Cluster) Client(ctx context.Context, server string) (*kubernetes.Clientset, error) {
	cfg, err := c.RESTConfig(ctx, server)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// Members asks the servers in turn for the status of all members, and gives
// the first answer that names a leader.
func (c *Cluster) Members(ctx context.Context) (*membership.Status, error) {
	s, err := c.p.load()
	if err != nil {
		return nil, err
	}
	last := errors.New("no server runs")
	for _, n := range s.Nodes {
		if proc, err := c.p.skiff(n.Name); n.Role == Agent || err != nil || !proc.runs() {
			continue
		}
		st, err := c.membersOf(ctx, n.Name)
		if err == nil && st.Leader != "" {
			return st, nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("%s knows no leader", n.Name)
		}
	}
	return nil, last
}

func (c *Cluster) membersOf(ctx context.Context, server string) (*membership.Status, error) {
	client, err := c.Client(ctx, server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	b, err := client.RESTClient().Get().AbsPath(membership.StatusPath).DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	st := &membership.Status{}
	return st, json.Unmarshal(b, st)
}

// awaitAll returns when every node with pods is Ready.
func (c *Cluster) awaitAll(ctx context.Context, s *state) error {
	var names []string
	for _, n := range s.Nodes {
		if s.runsPods(n) {
			names = append(names, n.Name)
		}
	}
	if err := c.AwaitReady(ctx, startLimit, names...); err != nil {
		return err
	}
	return c.AwaitVoters(ctx, startLimit)
}

// AwaitVoters returns when every server and witness votes.
func (c *Cluster) AwaitVoters(ctx context.Context, limit time.Duration) error {
	s, err := c.p.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := c.voters(ctx, s)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Cluster) voters(ctx context.Context, s *state) error {
	st, err := c.Members(ctx)
	if err != nil {
		return err
	}
	voter := map[string]bool{}
	for _, m := range st.Members {
		if m.Role == membership.RoleAgent {
			continue
		}
		// A server that lost its data has two entries until the old one is gone.
		if !m.Voter || m.State != membership.Alive {
			return fmt.Errorf("%s (%s) is %s and votes: %v", m.Name, m.ID, m.State, m.Voter)
		}
		voter[m.Name] = true
	}
	for _, n := range s.Nodes {
		if n.Role != Agent && !voter[n.Name] {
			return fmt.Errorf("%s does not vote yet", n.Name)
		}
	}
	return nil
}

// AwaitReady returns when the named nodes are Ready in the API.
func (c *Cluster) AwaitReady(ctx context.Context, limit time.Duration, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := c.ready(ctx, names)
		if err == nil {
			return nil
		}
		for _, name := range names {
			if proc, perr := c.p.skiff(name); perr == nil && proc.PID != 0 && proc.state() == 0 {
				return fmt.Errorf("skiff of %s has ended: %s", name, c.p.lastWords(name, 3))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (logs: %s)", err, c.p.nodeFile("*", "log"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Cluster) ready(ctx context.Context, names []string) error {
	client, err := c.Client(ctx, "")
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	ready := map[string]bool{}
	for _, n := range list.Items {
		for _, cond := range n.Status.Conditions {
			ready[n.Name] = ready[n.Name] || cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue
		}
	}
	var missing []string
	for _, n := range names {
		if !ready[n] {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not Ready: %s", strings.Join(missing, ", "))
	}
	return nil
}
