package cluster

import (
	"context"
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

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/epoch"
	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Stopped is a server that does not run, as `skiff recover` needs it. The caller
// holds the lock of its data directory.
type Stopped struct {
	dataDir string
	self    membership.Server
	survey  epoch.Survey
}

// OpenStopped reads the log of a server that does not run, and asks the others.
// passphrase is that of its keys, if they have one.
func OpenStopped(ctx context.Context, dataDir string, passphrase []byte) (*Stopped, error) {
	if i, err := epoch.LoadIntent(dataDir); err != nil {
		return nil, err
	} else if i != nil {
		return nil, fmt.Errorf("this server has something to finish (%s %s): start it", i.Do, i.Epoch)
	}
	if _, err := os.Stat(filepath.Join(dataDir, "pki", pki.CACertFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not the data directory of a server: name it with --data-dir", dataDir)
	}
	known, err := membership.LoadCluster(dataDir)
	if err != nil {
		return nil, err
	}
	if known == nil {
		return nil, fmt.Errorf("this server does not know its cluster: %s is missing in %s", membership.ClusterFile, dataDir)
	}
	b, err := os.ReadFile(filepath.Join(dataDir, "node-id"))
	if err != nil {
		return nil, fmt.Errorf("identity of this host: %w", err)
	}
	s := &Stopped{dataDir: dataDir, self: membership.Server{Name: "this host", ID: strings.TrimSpace(string(b))}}
	names := map[string]string{}
	var others []membership.Server
	for _, o := range known.Servers {
		names[o.ID] = o.Name
		if o.ID == s.self.ID {
			s.self = o
		} else {
			others = append(others, o)
		}
	}
	s.survey.Self = epoch.View{ClusterID: known.ClusterID, Server: s.self}
	v := &s.survey.Self
	info, logErr := backup.ReadLog(dataDir)
	if v.Epoch, err = raftdir.LoadEpoch(dataDir); logErr == nil {
		logErr = err
	}
	if logErr != nil {
		s.survey.Damage = logErr.Error()
	} else {
		v.Index, v.Term = info.Index, info.Term
	}
	for _, m := range info.Members {
		e := epoch.Member{ID: m.ID, Name: names[m.ID], Address: m.Addr, Voter: m.Voter}
		if e.Name == "" {
			e.Name = m.ID
		}
		s.survey.Members = append(s.survey.Members, e)
		if m.ID == s.self.ID && !s.self.Address.IsValid() {
			return nil, fmt.Errorf("%s does not name this server: start it once", membership.ClusterFile)
		}
		if !slices.ContainsFunc(others, func(o membership.Server) bool { return o.ID == m.ID }) && m.ID != s.self.ID {
			if o, ok := serverAt(e.Name, m.Member); ok {
				others = append(others, o)
			}
		}
	}
	keys, err := pki.OpenProtected(filepath.Join(dataDir, "pki"), passphrase)
	if err != nil {
		return nil, err
	}
	keys.SetLogger(slog.New(slog.DiscardHandler))
	leaf, err := keys.Leaf(pki.Request{CommonName: memberName, DNSNames: []string{s.self.ID}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		return nil, err
	}
	s.survey.Answers = epoch.Ask(ctx, memberTLS(leaf, func(string) bool { return false }), *v, others, askLimit, nil)
	return s, nil
}

// serverAt is a server of which only the Raft port is known.
func serverAt(name string, m raftdir.Member) (membership.Server, bool) {
	a, err := netip.ParseAddrPort(m.Addr)
	return membership.Server{Name: name, ID: m.ID, Address: a.Addr(), RaftPort: a.Port()}, err == nil
}

// Plan is what Do would do.
func (s *Stopped) Plan(rejoin bool) epoch.Plan {
	if rejoin {
		return s.survey.Rejoining()
	}
	return s.survey.Recovery(time.Now())
}

// Do carries a plan out. If it is interrupted, the next start of the server does
// the rest.
func (s *Stopped) Do(ctx context.Context, p epoch.Plan, force bool) error {
	if err := checkPlan(p, force); err != nil {
		return err
	}
	if err := p.Intent(raftdir.Member{ID: s.self.ID, Addr: s.self.Raft()}).Save(s.dataDir); err != nil {
		return err
	}
	_, err := epoch.Resume(ctx, s.dataDir)
	return err
}
