package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// keepName makes this host go by the name that it has in its cluster, whatever its
// host name is by now: pods, certificates and the member's record are bound to
// it. Another name that was given is refused.
func (o *hostOptions) keepName() error {
	have, err := nameInCluster(o.dataDir)
	switch {
	case err != nil:
		return err
	case have == "" || have == o.name:
		return nil
	case o.named:
		return usagef("--name %s: this host is a member of its cluster as %s: leave the flag out, or run skiff reset --delete-data and join again", o.name, have)
	}
	o.logger.Info("this host keeps the name that it has in its cluster", "name", have, "host name", o.name)
	o.name = have
	return nil
}

// mendKnown puts a damaged cluster.json of a server aside. The log has all of it, but
// for the server's own name.
func (o *hostOptions) mendKnown() error {
	_, err := membership.LoadCluster(o.dataDir)
	if !errors.Is(err, membership.ErrClusterFile) || !raftdir.Exists(o.dataDir) {
		return nil // said where it is needed
	}
	path := filepath.Join(o.dataDir, membership.ClusterFile)
	if !o.named {
		return fmt.Errorf("%s is damaged: start once with skiff server --name NAME, the name that this host has in its cluster; the file is then made again from the log", path)
	}
	o.logger.Warn("what this host knows of the cluster is damaged; the file is put aside and made again from the log", "file", path, "error", err)
	if err := os.RemoveAll(path + ".damaged"); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// nameInCluster gives the name of the member whose data directory dir is, "" if it
// is that of none.
func nameInCluster(dir string) (string, error) {
	crt := filepath.Join(dir, "agent", membership.CertFile)
	b, err := os.ReadFile(crt)
	if err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return "", fmt.Errorf("%s holds no certificate: put it back, or run skiff reset --delete-data and join again", crt)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fmt.Errorf("%s: %w", crt, err)
		}
		return strings.TrimPrefix(cert.Subject.CommonName, nodeUser("")), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("data directory: %w", err)
	}
	known, err := membership.LoadCluster(dir)
	if err != nil || known == nil {
		return "", err
	}
	id, err := os.ReadFile(filepath.Join(dir, "node-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // said where one is needed
	}
	if errors.Is(err, unix.EISDIR) {
		return "", fmt.Errorf("data directory: %w: move it away (the ID of a server is in %s beside it), or run skiff reset --delete-data and join again", err, membership.ClusterFile)
	}
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	i := slices.IndexFunc(known.Servers, func(s membership.Server) bool { return s.ID == strings.TrimSpace(string(id)) })
	if i < 0 {
		return "", nil
	}
	return known.Servers[i].Name, nil
}
