package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// up makes everything of a new cluster; the lock is held.
func (c *Cluster) up(ctx context.Context, s *state, cfg Config) (err error) {
	began := time.Now()
	p := c.p
	if err := p.preparePins(); err != nil {
		return err
	}
	if err := p.makeSwitch(s.Subnet); err != nil {
		return err
	}
	if err := p.routeOut(s); err != nil {
		c.progress("nodes cannot reach the world outside of this machine: %v", err)
	}
	if err := p.save(s); err != nil {
		return err
	}
	c.progress("%d nodes on %s", len(s.Nodes), s.Subnet)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, n := range s.Nodes {
		g.Go(func() error {
			if err := os.MkdirAll(p.nodeFile(n.Name, ""), 0o700); err != nil {
				return err
			}
			if !s.PlainDisks {
				if err := makeImage(gctx, p.nodeFile(n.Name, "disk.img"), cfg.DiskSize); err != nil {
					return err
				}
			}
			return p.prepare(gctx, s, n)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	first := s.Nodes[0]
	if err := c.start(ctx, s, first); err != nil {
		return err
	}
	if err := p.awaitAPI(ctx, first); err != nil {
		return err
	}
	s.Formed = true
	if err := p.save(s); err != nil {
		return err
	}
	c.progress("%s serves the API after %.1f s", first.Name, time.Since(began).Seconds())
	g, gctx = errgroup.WithContext(ctx)
	for _, n := range s.Nodes[1:] {
		g.Go(func() error { return c.start(gctx, s, n) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.awaitAll(ctx, s); err != nil {
		return err
	}
	c.progress("all nodes are ready after %.1f s", time.Since(began).Seconds())
	return nil
}

// Start starts skiff on a node, and before that switches the node on if it is
// off; a stalled disk goes on. It does not wait for the node to be Ready. A
// node whose data is gone joins again under its name.
func (c *Cluster) Start(ctx context.Context, node string) error {
	return c.change(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		if err := c.p.thawNode(node); err != nil {
			return err
		}
		proc, err := c.p.skiff(node)
		if err != nil {
			return err
		}
		switch proc.state() {
		case 0:
		case 'T', 't':
			return fmt.Errorf("%s is paused; let it go on with skiff dev kill %s --signal CONT", node, node)
		default:
			return fmt.Errorf("%s is up already", node)
		}
		if !c.p.kept(switchNode, "net") { // the machine was restarted
			if err := c.p.restore(s); err != nil {
				return err
			}
		}
		if !c.p.prepared(node) {
			if err := c.p.prepare(ctx, s, n); err != nil {
				return err
			}
		}
		return c.start(ctx, s, n)
	})
}

// restore makes again what a restart of the machine took away.
func (p place) restore(s *state) error {
	if err := p.preparePins(); err != nil {
		return err
	}
	if err := p.makeSwitch(s.Subnet); err != nil {
		return err
	}
	s.Cuts = nil
	return p.routeOut(s)
}

// start starts skiff on a node that is switched on, with what it needs to
// join where it is no member yet.
func (c *Cluster) start(ctx context.Context, s *state, n nodeState) error {
	p := c.p
	args := []string{"server"}
	more := s.ServerArgs
	switch n.Role {
	case Agent:
		args, more = []string{"agent"}, s.AgentArgs
	case Witness:
		args = append(args, "--witness")
	}
	args = append(args, "--name", n.Name, "--data-dir", p.nodeFile(n.Name, "data"), "--config", os.DevNull, "--advertise-address", n.Addr.String())
	if s.ImageDir != "" && n.Role != Witness {
		args = append(args, "--image-dir", s.ImageDir)
	}
	member, err := p.isMember(n)
	if err != nil {
		return err
	}
	// As variables: programs of before the flags ignore them.
	env := []string{"SKIFF_STATIC_POD_PATH=" + p.nodeFile(n.Name, "manifests"), "SKIFF_SHUTDOWN_GRACE_PERIOD=0"}
	if !member && s.Formed {
		token, server, err := c.token(ctx, s, n)
		if err != nil {
			return err
		}
		args = append(args, "--join", server.Addr.String())
		env = append(env, "SKIFF_TOKEN="+token) // flags can be read by everybody
	} else if !member && n.Index != 1 {
		return fmt.Errorf("%s cannot join before %s has made the cluster", n.Name, s.Nodes[0].Name)
	}
	return p.launch(s, n, append(args, more...), env)
}

// isMember says whether the node's data are those of a member, or were restored
// from a snapshot.
func (p place) isMember(n nodeState) (member bool, err error) {
	err = p.inside(n.Name, []string{"mnt"}, func() error {
		data := p.nodeFile(n.Name, "data")
		if _, err := os.Stat(filepath.Join(data, membership.ClusterFile)); !errors.Is(err, os.ErrNotExist) {
			member = err == nil
			return err
		}
		e, err := raftdir.LoadEpoch(data)
		member = err == nil && e.Cause != ""
		return err
	})
	return member, err
}

// token asks the servers in turn until one gives a token for n, and says which
// one that was.
func (c *Cluster) token(ctx context.Context, s *state, n nodeState) (token string, server nodeState, err error) {
	role := Server
	if n.Role == Agent {
		role = Agent
	}
	last := errors.New("no server runs")
	for deadline := time.Now().Add(startLimit); ; {
		for _, o := range s.Nodes {
			if proc, err := c.p.skiff(o.Name); o.Role == Agent || o.Name == n.Name || err != nil || !proc.runs() {
				continue
			}
			ask, cancel := context.WithTimeout(ctx, 10*time.Second)
			out, err := c.output(ask, o.Name, c.p.program(o.Name), "token", "create", "--role", string(role), "--ttl", "10m")
			cancel()
			if err == nil {
				return strings.TrimSpace(out), o, nil
			}
			last = err
		}
		if ctx.Err() != nil {
			return "", server, ctx.Err()
		}
		if time.Now().After(deadline) {
			return "", server, fmt.Errorf("%s has to join, and no server gives a token: %w", n.Name, last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// output runs a command in a node and gives its standard output.
func (c *Cluster) output(ctx context.Context, node, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(c.p.environment(node), "KUBECONFIG=") // the caller's may be of another cluster
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := c.p.begin(node, cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(append([]string{filepath.Base(name)}, args...), " "), node, err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// Output runs a command in a node and gives its standard output; an error has
// what it wrote to standard error.
func (c *Cluster) Output(ctx context.Context, node, name string, args ...string) (string, error) {
	s, err := c.p.load()
	if err != nil {
		return "", err
	}
	if _, err := s.node(node); err != nil {
		return "", err
	}
	if name == "skiff" {
		name = c.p.program(node)
	}
	return c.output(ctx, node, name, args...)
}
