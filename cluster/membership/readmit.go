package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// KeepOut ends this server's part in the cluster, which goes on without its log,
// until it is started again: like one that was removed it serves nothing, and
// says why. The first call counts, of this or of a removal.
func (s *Service) KeepOut(ctx context.Context, why string) {
	first := false
	s.once.Do(func() { first = true })
	if !first {
		return
	}
	s.c.Logger.Error("this server is kept out of the cluster and serves nothing; its pods go on, but those of StatefulSets, which must not run twice", "because", why)
	s.leave(&Refusal{Status: http.StatusForbidden, Message: why})
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.c.LeaveGossip(ctx); err != nil && ctx.Err() == nil {
		s.c.Logger.Debug("gossip was not told that this server stays out", "error", err)
	}
}

// known makes sure that a node which shows its certificate is a member. One that
// joined after the snapshot that was restored, of which nobody knows any more, is
// admitted again: the cluster had let it in, and it was not removed since.
func (s *Service) known(ctx context.Context, name, id, address string, cert *x509.Certificate) error {
	err := s.stillMember(name, id)
	if err == nil || s.removal(id) != nil {
		return err
	}
	rec, revision, e := s.record(name)
	epoch := s.c.Epoch()
	if e != nil || rec != nil || epoch.Cause != raftdir.Restored || !pki.IssuedAt(cert).Before(epoch.At) {
		return err
	}
	for other, r := range s.records() {
		if r.ID == id {
			return refuse(http.StatusConflict, "this host is a member already, as %s", other)
		}
	}
	op, e := putRecord(name, Record{ID: id, Role: RoleAgent, Joined: s.c.Now().UTC().Truncate(time.Second), Address: address}, revision)
	if e != nil {
		return fmt.Errorf("encode the record: %w", e)
	}
	e = s.propose(ctx, "admit "+name+" again", op)
	if errors.Is(e, store.ErrExists) || errors.Is(e, store.ErrConflict) {
		return s.stillMember(name, id) // somebody was faster
	}
	if e == nil {
		s.c.Logger.Info("a node that joined after the restored snapshot was taken is a member again", "name", name, "id", id)
	}
	return e
}
