// Package trust keeps what the members of a cluster trust and sign with in one
// replicated, sealed document, and replaces it without a moment in which two
// members do not understand each other.
//
// Every change of the document is a new generation. A server installs it as soon
// as it has it (Run) and says so in its gossip tags; agents fetch it when they
// see that servers have a newer one. A rotation goes in phases (trust the new
// one, use it, stop trusting the old one), and the leader (Duty) goes on to the
// next only when every member that is alive has installed the last. All it has
// to know is in the document, so another leader goes on where one ended.
//
// A member that was off during the first phases comes back by itself: until the
// old CA is dropped, whatever the new one signs comes with a certificate of the
// new CA by the old one. Dropping the old CA is therefore a command of its own,
// which names those who would be left behind.
package trust

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Proposer is where writes go; cluster/consensus implements it.
type Proposer interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
}

// Member is what gossip says of a member, agents included.
type Member struct {
	Name string
	// Trust is the generation it has installed: bundle, gossip keys and its own
	// leaf certificates.
	Trust uint64
	Alive bool
	// Ports are where its certificates can be seen: what it is good for ("api",
	// "raft", "node") -> host:port.
	Ports map[string]string
}

// Config of a Trust.
type Config struct {
	Node   Proposer
	Store  *store.Store
	PKI    *pki.PKI
	Sealer *seal.Sealer
	// Members says who there is by gossip, this one included or not; nil is nobody
	// else. Those with a record in the state are added.
	Members func() []Member
	// Settle is how long after New a member that Members does not name may be alive;
	// default 15s.
	Settle time.Duration
	// Name of this member, for status.
	Name string
	// GossipKeys are those that a new cluster begins with; by default one is drawn.
	GossipKeys [][]byte
	// Poll is how often the leader looks how far members are while a rotation is
	// under way; default 500ms.
	Poll   time.Duration
	Logger *slog.Logger
}

// Trust follows the document and changes it. It is safe for concurrent use.
type Trust struct {
	cfg   Config
	began time.Time
	step  func(string) // told before each write, for tests

	mu        sync.Mutex
	installed *document
	problem   error // why the newest document could not be installed
	listeners map[chan struct{}]struct{}
}

// New validates c and starts nothing.
func New(c Config) (*Trust, error) {
	if c.Node == nil || c.Store == nil || c.PKI == nil || c.Sealer == nil {
		return nil, errors.New("trust: Node, Store, PKI and Sealer are needed")
	}
	if c.Members == nil {
		c.Members = func() []Member { return nil }
	}
	if c.Poll <= 0 {
		c.Poll = 500 * time.Millisecond
	}
	if c.Settle <= 0 {
		c.Settle = settleTime
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Trust{cfg: c, began: time.Now(), step: func(string) {}, listeners: map[chan struct{}]struct{}{}}, nil
}

// installRetry is the pause after a document could not be installed.
const installRetry = 5 * time.Second

// Run installs every new generation until ctx ends.
func (t *Trust) Run(ctx context.Context) error {
	said := "" // is not said again
	for ctx.Err() == nil {
		changed := t.cfg.Store.Watch(Key, t.cfg.Store.Revision())
		wait, cancel := ctx, context.CancelFunc(func() {})
		if err := t.install(ctx); err == nil {
			said = ""
		} else {
			if text := err.Error(); text != said {
				said = text
				t.cfg.Logger.Error("cannot install what the cluster trusts, will try again", "error", err)
			}
			wait, cancel = context.WithTimeout(ctx, installRetry)
		}
		_, _, _ = changed.Next(wait)
		cancel()
	}
	return nil
}

func (t *Trust) install(ctx context.Context) (err error) {
	defer func() {
		t.mu.Lock()
		t.problem = err
		t.mu.Unlock()
	}()
	d, err := t.read(ctx, t.stored())
	if err != nil || d == nil {
		return err
	}
	t.mu.Lock()
	had := t.installed
	t.mu.Unlock()
	if had == nil || had.Generation != d.Generation {
		if err := t.cfg.PKI.Set(d.keys()); err != nil {
			return err
		}
		if had != nil {
			t.cfg.Logger.Info("installed new keys and certificates", "generation", d.Generation)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.installed = d
	for c := range t.listeners {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	return nil
}

// Document gives what is installed here: its generation (0 before the first),
// the CA certificates (PEM, the one that signs first) and the gossip keys (the
// first encrypts).
func (t *Trust) Document() (generation uint64, caBundle []byte, gossipKeys [][]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.installed == nil {
		return 0, t.cfg.PKI.Bundle(), t.cfg.GossipKeys
	}
	return t.installed.Generation, t.cfg.PKI.Bundle(), t.installed.GossipKeys
}

// Leaves is the generation since which leaf certificates must be: who has one
// that was issued under an earlier generation asks for another.
func (t *Trust) Leaves() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.installed == nil {
		return 0
	}
	return t.installed.Leaves
}

// Changes delivers a value after each installation; values are not kept for a
// slow reader beyond one. The function ends it.
func (t *Trust) Changes() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listeners[c] = struct{}{}
	return c, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.listeners, c)
	}
}

// errUnchanged ends an update that has nothing to change.
var errUnchanged = errors.New("unchanged")

// update changes the document. change gets a copy; with install it becomes a new
// generation.
func (t *Trust) update(ctx context.Context, install bool, change func(*document) error) error {
	kv := t.stored()
	for {
		if kv == nil {
			return errors.New("the cluster has no document of its keys yet: try again in a moment")
		}
		old, err := t.read(ctx, kv)
		if err != nil {
			return err
		}
		d := old.clone()
		if install {
			// Larger than any that was given out, also after a restore.
			d.Generation = max(d.Generation+1, uint64(t.cfg.Store.Revision()))
		}
		if err := change(d); err != nil {
			if errors.Is(err, errUnchanged) {
				return nil
			}
			return err
		}
		if err := d.check(); err != nil {
			return err
		}
		b, err := t.encode(ctx, d)
		if err != nil {
			return err
		}
		t.step("document")
		r, err := t.cfg.Node.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: Key, Value: b, Expect: kv.ModRevision}))
		if err != nil {
			return fmt.Errorf("change what the cluster trusts: %w", err)
		}
		if r.Err == nil {
			return nil
		}
		kv = r.Current // somebody was faster
	}
}

// ensure makes the document of a cluster that has none, and removes what
// versions before kept readable.
func (t *Trust) ensure(ctx context.Context) error {
	view := t.cfg.Store.View()
	var ops []fsm.Op
	if _, ok := view.Get(Key); !ok {
		d, err := firstDocument(t.cfg.PKI, t.cfg.GossipKeys)
		if err != nil {
			return err
		}
		b, err := t.encode(ctx, d)
		if err != nil {
			return err
		}
		ops = append(ops, fsm.Op{Type: fsm.Put, Key: Key, Value: b, Expect: 0})
	}
	view.Ascend(plainPrefix, "", func(kv *store.KeyValue) bool {
		ops = append(ops, fsm.Op{Type: fsm.Delete, Key: kv.Key, Expect: kv.ModRevision})
		return true
	})
	if len(ops) == 0 {
		return nil
	}
	t.step("ensure")
	r, err := t.cfg.Node.Propose(ctx, fsm.Batch(ops...))
	if err = errors.Join(err, r.Err); err != nil {
		return fmt.Errorf("put the cluster's keys into its state: %w", err)
	}
	return nil
}

func list(names []string) string { return strings.Join(names, ", ") }
