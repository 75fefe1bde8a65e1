package dev

import (
	"context"
	"crypto/tls"
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
	"k8s.io/client-go/tools/clientcmd"
)

// awaitAPI returns when the server answers its readiness check.
func (p place) awaitAPI(ctx context.Context, n nodeState) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // only to see whether it is up
	}}
	for deadline := time.Now().Add(time.Minute); ; {
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
		if proc, err := c.p.skiff(n.Name); err != nil || proc.state() == 0 {
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

// Client is a client of the API that goes on with another server when one
// fails.
func (c *Cluster) Client(ctx context.Context) (*kubernetes.Clientset, error) {
	path, err := c.Kubeconfig(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Timeout = -1, 10*time.Second
	return kubernetes.NewForConfig(cfg)
}

// awaitAll returns when every node with pods is Ready.
func (c *Cluster) awaitAll(ctx context.Context, s *state) error {
	var names []string
	for _, n := range s.Nodes {
		if n.Role != Witness {
			names = append(names, n.Name)
		}
	}
	return c.AwaitReady(ctx, 2*time.Minute, names...)
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
	client, err := c.Client(ctx)
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
