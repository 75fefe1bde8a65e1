package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// joinOptions are --join and --token.
type joinOptions struct {
	host  string
	token *membership.Token // nil: none was given
}

func parseJoin(c *cli.Context) (j joinOptions, err error) {
	j.host = c.String("join")
	text := c.String("token")
	if text == "" {
		return j, nil
	}
	if j.host == "" {
		return j, usagef("--token goes with --join HOST, the address of any server of the cluster")
	}
	t, err := membership.ParseToken(text)
	if err != nil {
		return j, usagef("--token: %v", err)
	}
	j.token = &t
	return j, nil
}

const (
	joinPatience = 2 * time.Minute  // for a server that does not answer, or has no leader
	joinTry      = 30 * time.Second // for one that takes connections and says nothing
	joinRetry    = time.Second
	joinRetryMax = 10 * time.Second
)

// askOnce gives a server no more than limit: one may hang.
func (j joinOptions) askOnce(ctx context.Context, r membership.JoinRequest, limit time.Duration) (*membership.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return membership.Join(ctx, j.host, *j.token, r)
}

// ask asks the cluster to admit this host until it answers.
func (j joinOptions) ask(ctx context.Context, r membership.JoinRequest, log *slog.Logger) (*membership.Answer, error) {
	if j.token == nil {
		return nil, usagef("--join needs --token: make one with skiff token create --role %s on a server", r.Role)
	}
	if a, err := netip.ParseAddr(r.Address); err == nil && a.IsLoopback() && !isLoopback(j.host) {
		return nil, usagef("others cannot reach this host by %s, the only address that was found: choose one with --advertise-address", a)
	}
	began := time.Now()
	for pause := joinRetry; ; pause = min(2*pause, joinRetryMax) {
		a, err := j.askOnce(ctx, r, joinTry)
		var refused *membership.Refusal
		switch {
		case err == nil:
			a.JoinedCA = j.token.CA[:]
			log.Info("this host has joined the cluster", "cluster", a.ClusterID, "servers", len(a.Servers))
			for _, w := range a.Warnings {
				log.Warn(w)
			}
			return a, nil
		case errors.As(err, &refused), ctx.Err() != nil, time.Since(began) > joinPatience:
			return nil, fmt.Errorf("join %s: %w", j.host, err)
		}
		log.Warn("cannot join yet", "error", err, "again in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("join %s: %w", j.host, err)
		}
	}
}

// isLoopback tells whether HOST or HOST:PORT, or the URL of it, is this host.
func isLoopback(s string) bool {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "https://"), "/")
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return s == "localhost" || err == nil && a.IsLoopback()
}

// sameCluster refuses a token of another cluster than the one that this host is
// in. bundle holds the certificates of its CAs; that of the token may have been
// replaced since the join.
func (j joinOptions) sameCluster(bundle []byte, known *membership.Cluster, dataDir string) error {
	if j.token == nil || known != nil && bytes.Equal(known.JoinedCA, j.token.CA[:]) {
		return nil
	}
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		if sha256.Sum256(block.Bytes) == j.token.CA {
			return nil
		}
	}
	return fmt.Errorf("%s belongs to another cluster than the token (if the CA of its own was replaced, leave --token out): skiff reset --delete-data removes this host's part in it, and all that only this host has; or choose another --data-dir", dataDir)
}

// sayUnused tells a host that is in its cluster already that it joins no other.
// With a token that is sure to be the same one.
func (j joinOptions) sayUnused(log *slog.Logger, dataDir string) {
	if j.host != "" && j.token == nil {
		log.Warn("this host is in its cluster already: --join has no effect", "join", j.host, "data", dataDir)
	}
}

// exists tells whether there is a file.
func exists(path ...string) (bool, error) {
	_, err := os.Stat(filepath.Join(path...))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// holdsFiles tells whether a directory is there and not empty.
func holdsFiles(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(entries) > 0, err
}

// joinServer makes the data directory that of a server of the cluster that it is
// to join, unless it is one already. Without --join nothing is to be done. It
// refuses settings that are not those of the cluster.
func joinServer(ctx context.Context, o *serverOptions) error {
	pkiDir := filepath.Join(o.dataDir, "pki")
	agent, err := exists(o.dataDir, "agent", membership.CertFile)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if agent {
		return fmt.Errorf("this host is an agent of its cluster (%s): run skiff reset --delete-data before it becomes a server", filepath.Join(o.dataDir, "agent"))
	}
	member, err := holdsFiles(pkiDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	known, err := membership.LoadCluster(o.dataDir)
	if err != nil {
		return err
	}
	begun, err := exists(raftdir.LogPath(o.dataDir))
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	switch {
	case member && known == nil && !begun && o.join.host != "":
		return fmt.Errorf("%s holds keys already, and a server that joins gets those of the cluster: remove it; or leave --join out, to begin a cluster with these keys", pkiDir)
	case !member && begun:
		return fmt.Errorf("%s is missing, and %s belongs to it: %s", pkiDir, raftdir.LogPath(o.dataDir), pki.PutBack)
	case member && o.join.host != "":
		bundle, err := os.ReadFile(filepath.Join(pkiDir, pki.CACertFile))
		if err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
		if err := o.join.sameCluster(bundle, known, o.dataDir); err != nil {
			return err
		}
		o.join.sayUnused(o.logger, o.dataDir)
	case member:
	case o.join.host == "" && known != nil:
		return fmt.Errorf("this host's join was interrupted, or %s was deleted: start it with --join HOST and a new --token", pkiDir)
	case o.join.host == "":
		return nil // the first server of a new cluster
	default:
		if known, err = o.joinNow(ctx, pkiDir); err != nil {
			return err
		}
	}
	return o.agree(known)
}

func (o *serverOptions) joinNow(ctx context.Context, pkiDir string) (*membership.Cluster, error) {
	id, err := cluster.NodeID(o.dataDir)
	if err != nil {
		return nil, err
	}
	c := &o.cluster
	a, err := o.join.ask(ctx, membership.JoinRequest{Role: c.Role, Name: o.name, NodeID: id, Version: version, Address: o.advertise.String(),
		APIPort: c.Port, RaftPort: c.RaftPort, GossipPort: c.GossipPort, NodePort: c.NodePort, Told: o.given}, o.logger)
	if err != nil {
		return nil, err
	}
	// What names this server as one that was there says that its log must be too.
	a.Servers = slices.DeleteFunc(a.Servers, func(s membership.Server) bool { return s.ID == id })
	// The keys come last: they tell that the join is complete.
	if err := membership.SaveCluster(o.dataDir, &a.Cluster); err != nil {
		return nil, err
	}
	return &a.Cluster, pki.Install(pkiDir, a.PKI, c.Passphrase)
}

// agree refuses settings that are not those of the cluster.
func (o *serverOptions) agree(known *membership.Cluster) error {
	if known == nil {
		return nil
	}
	if err := known.Settings.Agree(o.given); err != nil {
		return usagef("%v", err)
	}
	return nil
}
