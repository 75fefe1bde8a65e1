package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrRefused says that what was asked for can't be done in the present state;
// the text says why.
var ErrRefused = errors.New("refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// RotateCA begins to replace the CA: the leader brings it to where the new CA
// signs and the old one is still trusted. With finish it ends such a rotation:
// the old CA is no longer trusted; that is refused while members have not come
// along (see FinishCA).
func (t *Trust) RotateCA(ctx context.Context, finish bool) error {
	if finish {
		_, err := t.FinishCA(ctx, false)
		return err
	}
	return t.update(ctx, true, func(d *document) error {
		if r := d.CARotation; r != nil {
			if r.Phase == PhaseOverlap {
				return refuse("the last rotation of the CA waits for its end: skiff certs rotate-ca --finish")
			}
			return refuse("a rotation of the CA is under way (phase %s)", r.Phase)
		}
		if err := t.cfg.PKI.Set(d.keys()); err != nil { // the new one is to be signed by the present one
			return err
		}
		ca, err := t.cfg.PKI.NewCA()
		if err != nil {
			return err
		}
		d.CAs = append(d.CAs[:1:1], authority{Cert: string(ca.Cert), Key: string(ca.Key), Cross: string(ca.Cross)})
		d.CARotation = newRotation()
		return nil
	})
}

// FinishCA drops the CA that was replaced. With force it does so even when
// members have not installed the new one; it returns the names of those, which
// are cut off and have to join anew.
func (t *Trust) FinishCA(ctx context.Context, force bool) (cutOff []string, err error) {
	err = t.update(ctx, true, func(d *document) error {
		r := d.CARotation
		switch {
		case r == nil:
			return refuse("no rotation of the CA is under way")
		case r.Phase == PhaseAdd:
			return refuse("the new CA does not sign yet; see skiff certs status")
		}
		stored, err := t.read(ctx, t.stored())
		if err != nil {
			return err
		}
		cutOff = t.behind(stored.Generation, false)
		if len(cutOff) > 0 && !force {
			return refuse("these members would be cut off and have to join anew: %s; start them, or remove them, or use --force", list(cutOff))
		}
		d.CAs = d.CAs[:1]
		d.CAs[0].Cross = ""
		d.CARotation = nil
		return nil
	})
	return cutOff, err
}

// RotateLeaves has every leaf certificate of the cluster issued anew.
func (t *Trust) RotateLeaves(ctx context.Context) error {
	return t.update(ctx, true, func(d *document) error {
		d.Leaves = d.Generation
		return nil
	})
}

// RotateGossipKey begins to replace the key of gossip; the leader brings it to
// its end.
func (t *Trust) RotateGossipKey(ctx context.Context) error {
	return t.update(ctx, true, func(d *document) error {
		if r := d.GossipRotation; r != nil {
			return refuse("a rotation of the gossip key is under way (phase %s)", r.Phase)
		}
		key, err := newGossipKey()
		if err != nil {
			return err
		}
		d.GossipKeys = append(d.GossipKeys[:1:1], key)
		d.GossipRotation = newRotation()
		return nil
	})
}

// behind names the members that have not installed a generation: all, or those
// that are alive.
func (t *Trust) behind(generation uint64, aliveOnly bool) (names []string) {
	for _, m := range t.members() {
		if m.Trust < generation && m.Name != t.cfg.Name && (m.Alive || !aliveOnly) {
			names = append(names, m.Name)
		}
	}
	t.mu.Lock()
	own := t.installed
	t.mu.Unlock()
	if own == nil || own.Generation < generation {
		names = append(names, t.cfg.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// dutyRetry is the pause after a failed step.
const dutyRetry = time.Second

// Duty is the leader's: it makes the document of a new cluster and drives
// rotations. Without one it sleeps.
func (t *Trust) Duty(ctx context.Context) error {
	said := "" // is not said again
	for ctx.Err() == nil {
		changed := t.cfg.Store.Watch(Key, t.cfg.Store.Revision())
		moving, err := t.advance(ctx)
		wait, cancel := ctx, context.CancelFunc(func() {})
		switch {
		case err != nil && ctx.Err() == nil:
			if text := err.Error(); text != said {
				said = text
				t.cfg.Logger.Warn("keys and certificates: will try again", "error", err)
			}
			wait, cancel = context.WithTimeout(ctx, dutyRetry)
		case moving:
			said = ""
			wait, cancel = context.WithTimeout(ctx, t.cfg.Poll)
		default:
			said = ""
		}
		_, _, _ = changed.Next(wait)
		cancel()
	}
	return nil
}

// advance takes each rotation one step on if all members that are alive have
// come so far; moving says that there is more to do.
func (t *Trust) advance(ctx context.Context) (moving bool, err error) {
	if err := t.ensure(ctx); err != nil {
		return false, err
	}
	d, err := t.read(ctx, t.stored())
	if err != nil {
		return false, err
	}
	if d == nil {
		return true, nil // on its way
	}
	if !d.moving() {
		return false, nil
	}
	if len(t.behind(d.Generation, true)) > 0 {
		return true, nil
	}
	next := d.clone()
	install := next.advance()
	t.cfg.Logger.Info("keys and certificates: all members have come along, going on", "generation", d.Generation, "ca", phase(next.CARotation), "gossip", phase(next.GossipRotation))
	return true, t.update(ctx, install, func(now *document) error {
		if !now.CARotation.same(d.CARotation) || !now.GossipRotation.same(d.GossipRotation) {
			return errUnchanged // somebody else has gone on
		}
		now.advance()
		return nil
	})
}

func phase(r *Rotation) string {
	if r == nil {
		return "none"
	}
	return string(r.Phase)
}

func (r *Rotation) phase() Phase {
	if r == nil {
		return ""
	}
	return r.Phase
}

// same says whether both are one rotation in one phase.
func (r *Rotation) same(o *Rotation) bool {
	return r.phase() == o.phase() && (r == nil || r.Since.Equal(o.Since))
}

// moving says whether a rotation goes on by itself.
func (d *document) moving() bool {
	return d.GossipRotation != nil || d.CARotation != nil && d.CARotation.Phase != PhaseOverlap
}

// advance is the next step of each rotation. It says whether there is anything
// to install.
func (d *document) advance() (install bool) {
	switch d.CARotation.phase() {
	case PhaseAdd: // the key of the old one is not needed any more
		old, fresh := d.CAs[0], d.CAs[1]
		old.Key, old.Cross = "", ""
		d.CAs = []authority{fresh, old}
		d.Leaves = d.Generation
		d.CARotation = d.CARotation.to(PhaseUse)
		install = true
	case PhaseUse:
		d.CARotation = d.CARotation.to(PhaseOverlap)
	}
	switch d.GossipRotation.phase() {
	case PhaseAdd:
		d.GossipKeys = [][]byte{d.GossipKeys[1], d.GossipKeys[0]}
		d.GossipRotation = d.GossipRotation.to(PhaseUse)
		install = true
	case PhaseUse:
		d.GossipKeys = d.GossipKeys[:1]
		d.GossipRotation = nil
		install = true
	}
	return install
}
