package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls back, mostly with its own lock held: no
// method may call memberlist.
type delegate struct{ g *Gossip }

const conflictEvery = time.Minute

var errForeign = errors.New("it belongs to another cluster")

// NotifyAlive refuses what must not become a member. Refused ones are neither
// probed nor told of to others.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	g := d.g
	if n.Name == g.node {
		return nil
	}
	name, epoch, ok := nodeName(n.Name)
	if !ok {
		return fmt.Errorf("its name %q is not of the form NAME/EPOCH", n.Name)
	}
	tags, _, err := decodeTags(n.Meta)
	if err != nil {
		return err
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return errors.New("its address is none")
	}
	if tags.ClusterID != g.cfg.Tags.ClusterID {
		if g.said.first("foreign "+tags.ClusterID+name, quiet) {
			g.log.Warn("a member of another cluster is ignored", "member", name, "address", ip.String(), "cluster", tags.ClusterID)
		}
		return errForeign
	}
	g.mu.RLock()
	e := g.table[name]
	var existing Member
	if e != nil {
		existing = e.shown
	}
	g.mu.RUnlock()
	if e == nil || existing.Tags.ID == tags.ID {
		if name == g.cfg.Name && epoch != g.epoch {
			return errors.New("it is a former run of this member")
		}
		return nil
	}
	if existing.State != Alive {
		return nil
	}
	other := Member{Name: name, Addr: ip.Unmap(), Port: n.Port, Tags: tags, State: Alive, Since: time.Now()}
	g.conflict(existing, other)
	if name == g.cfg.Name {
		g.refused.Store(int64(time.Since(g.begin) + refusedFor)) // the others may refuse us: ask until the other one is gone
		poke(g.missing)
	}
	return fmt.Errorf("the name belongs to the live member with ID %s", existing.Tags.ID)
}

// conflict hands a conflict to report, once in a while.
func (g *Gossip) conflict(existing, other Member) {
	if !g.said.first("conflict "+existing.Name+" "+other.Tags.ID+other.Addr.String(), conflictEvery) {
		return
	}
	select {
	case g.conflicts <- [2]Member{existing, other}:
	default:
	}
}

// report tells of conflicts, outside of memberlist's locks.
func (g *Gossip) report(ctx context.Context) {
	for {
		select {
		case c := <-g.conflicts:
			existing, other := c[0], c[1]
			if existing.Tags.ID == other.Tags.ID {
				g.log.Error("two machines run as one member: one is a copy of the other", "member", existing.Name, "id", existing.Tags.ID, "address", existing.Addr.String(), "other", other.Addr.String())
			} else {
				g.log.Error("two live members have one name: the second is ignored", "member", existing.Name, "address", existing.Addr.String(), "other", other.Addr.String())
			}
			if g.cfg.Conflict != nil {
				g.cfg.Conflict(existing, other)
			}
		case <-ctx.Done():
			return
		}
	}
}

// NotifyMerge refuses the state of a foreign cluster whole.
func (d delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if tags, _, err := decodeTags(n.Meta); err == nil && tags.ClusterID != d.g.cfg.Tags.ClusterID {
			if d.g.said.first("foreign "+tags.ClusterID, quiet) {
				d.g.log.Warn("the gossip of another cluster is ignored", "cluster", tags.ClusterID)
			}
			return errForeign
		}
	}
	return nil
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.g.met(n) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.g.met(n) }
func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.g.noticeGap() // before the clock's own goroutine may have run
	d.g.lost(n)
}

func (d delegate) NodeMeta(int) []byte {
	d.g.mu.RLock()
	defer d.g.mu.RUnlock()
	b, err := encodeTags(d.g.told, d.g.leaving)
	if err != nil {
		panic(err) // New and SetTags have tried
	}
	return b
}

func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}
