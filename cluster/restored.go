package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/trust"
)

// RestoredFiles are those that a restored server finds the other members with:
// cluster.json, as far as the state of a snapshot tells it. key opens what is
// sealed in it. Members of versions that did not note their ports are looked for at
// the default ones.
func RestoredFiles(info *backup.Info, state map[string][]byte, key *seal.Key) (map[string][]byte, error) {
	c := membership.Cluster{ClusterID: info.ClusterID}
	if b, ok := state[settingsKey]; ok {
		if err := json.Unmarshal(b, &c.Settings); err != nil {
			return nil, fmt.Errorf("settings of the cluster (key %s): %w", settingsKey, err)
		}
	}
	records, err := membership.Records(state)
	if err != nil {
		return nil, err
	}
	if c.Generation, c.GossipKeys, err = trust.RecoverGossip(state, key); err != nil {
		return nil, err
	}
	if c.ClusterID == "" || !c.Settings.ClusterCIDR.IsValid() || len(c.GossipKeys) == 0 {
		return nil, nil // of a cluster that was just being made: the log tells all
	}
	for name, r := range records {
		a, err := netip.ParseAddr(r.Address)
		if err != nil {
			continue
		}
		s := membership.Server{Name: name, ID: r.ID, Address: a, APIPort: orPort(r.APIPort, DefaultPort),
			RaftPort: orPort(r.RaftPort, DefaultRaftPort), GossipPort: orPort(r.GossipPort, DefaultGossipPort)}
		if r.Role.Votes() {
			c.Servers = append(c.Servers, s)
		} else {
			c.Seeds = append(c.Seeds, s.Gossip())
		}
	}
	slices.SortFunc(c.Servers, func(a, b membership.Server) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(c.Seeds)
	b, err := json.MarshalIndent(&c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", membership.ClusterFile, err)
	}
	return map[string][]byte{membership.ClusterFile: append(b, '\n')}, nil
}

func orPort(p, otherwise uint16) uint16 {
	if p == 0 {
		return otherwise
	}
	return p
}
