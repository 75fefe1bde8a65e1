package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/skiff-sh/skiff/cluster/membership"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// settingsKey holds the membership.Settings of the cluster, as JSON.
const settingsKey = "/skiff/settings"

// DefaultPodEvictionTimeout is that of upstream.
const DefaultPodEvictionTimeout = 5 * time.Minute

// ErrRestart ends Run when the server has to be made anew with what it has
// learned meanwhile; the data directory holds that already.
var ErrRestart = errors.New("the server has to start again")

// Settings are what all members have in common. They are those of the cluster
// as soon as this server knows them.
func (s *Server) Settings() membership.Settings { return *s.settings.Load() }

// openKnown takes over what the cluster told this host in former runs, or when
// it joined.
func (s *Server) openKnown() error {
	known, err := membership.LoadCluster(s.cfg.DataDir)
	if err != nil {
		return err
	}
	c := &s.cfg
	timeout := DefaultPodEvictionTimeout
	if known != nil {
		s.known.cluster = *known
		told := known.Settings
		c.ClusterCIDR, c.ServiceCIDR, c.ClusterDomain = told.ClusterCIDR, told.ServiceCIDR, told.ClusterDomain
		timeout = told.PodEvictionTimeout
	}
	if c.PodEvictionTimeout != nil {
		timeout = *c.PodEvictionTimeout
	}
	s.settings.Store(&membership.Settings{ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, ClusterDomain: c.ClusterDomain, PodEvictionTimeout: timeout})
	return nil
}

// replicateSettings is what the leader does first: a new cluster gets the
// settings of its first server.
func (s *Server) replicateSettings(ctx context.Context) error {
	if _, ok := s.state.View().Get(settingsKey); ok {
		return nil
	}
	return s.putSettings(ctx, s.Settings(), 0)
}

func (s *Server) putSettings(ctx context.Context, v membership.Settings, expect int64) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the settings: %w", err)
	}
	r, err := s.node.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: settingsKey, Value: b, Expect: expect}))
	if err = errors.Join(err, r.Err); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("write the cluster's settings: %w", err)
	}
	return nil
}

// followSettings keeps Settings what the state says, until ctx ends. A change of
// the timeout that this server was given is written once.
func (s *Server) followSettings(ctx context.Context) error {
	w := s.state.Watch(settingsKey, s.state.Revision())
	given := s.cfg.PodEvictionTimeout
	for {
		if kv, ok := s.state.View().Get(settingsKey); ok {
			var v membership.Settings
			if err := json.Unmarshal(kv.Value, &v); err != nil {
				return fmt.Errorf("settings of the cluster (key %s): %w", settingsKey, err)
			}
			if err := s.takeSettings(v); err != nil {
				return err
			}
			if given != nil && *given != v.PodEvictionTimeout {
				s.cfg.Logger.Info("the pod eviction timeout of the cluster changes", "from", v.PodEvictionTimeout, "to", *given)
				v.PodEvictionTimeout = *given
				s.untilDone(ctx, "settings", func(ctx context.Context) error { return s.putSettings(ctx, v, fsm.Any) })
			}
			given = nil
		}
		if _, _, err := w.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			w = s.state.Watch(settingsKey, s.state.Revision())
		}
	}
}

// takeSettings makes v hold here. What the address ranges are is built into every
// part: a server that was started with others, on a restored snapshot, starts
// again.
func (s *Server) takeSettings(v membership.Settings) error {
	have := s.Settings()
	if have == v {
		return nil
	}
	s.settings.Store(&v)
	err := s.remember(nil)
	have.PodEvictionTimeout = v.PodEvictionTimeout
	if have == v {
		if err != nil { // the next change of anything saves it
			s.cfg.Logger.Error("the new settings of the cluster are not saved", "error", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	s.cfg.Logger.Warn("the cluster has other settings than this server was started with: it starts again with those of the cluster",
		"clusterCIDR", v.ClusterCIDR, "serviceCIDR", v.ServiceCIDR, "clusterDomain", v.ClusterDomain)
	return ErrRestart
}
