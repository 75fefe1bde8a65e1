package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Log is where writes go; cluster/consensus implements it.
type Log interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
	ReadIndex(ctx context.Context) error
	// CallLeader runs a method of Service.Methods on the leader.
	CallLeader(ctx context.Context, method string, body []byte) ([]byte, error)
}

// Cluster is what the leader knows and does beside writing.
type Cluster interface {
	// Members are all, dead ones too, with Facts but for reports and pods.
	Members(ctx context.Context) ([]Info, error)
	// Pods completes the Facts of a member that has a node: before are the pods
	// that were ready, by UID.
	Pods(ctx context.Context, name string, before []string, f *Facts) error
	// Save takes a snapshot and verifies it.
	Save(ctx context.Context) (*Saved, error)
	// Trouble says what stands against any roll-out now, a line each.
	Trouble(ctx context.Context) []string
	// Budgets says which pods on the nodes may not be evicted now, a line each.
	Budgets(ctx context.Context, nodes []string) ([]string, error)
	// Drain does one round: what is left moves by itself. cordoned tells that the
	// node was schedulable before.
	Drain(ctx context.Context, node string) (cordoned bool, err error)
	Uncordon(ctx context.Context, node string) error
	// HandOver lets another server lead.
	HandOver(ctx context.Context, to string) error
	RaiseLevel(ctx context.Context, level int) error
}

// Info is a member with what a plan looks at.
type Info struct {
	Name string `json:"name"`
	Role string `json:"role"`
	Facts
	MinLevel int    `json:"minLevel"`
	MaxLevel int    `json:"maxLevel"`
	Free     uint64 `json:"freeMiB"` // 0: not known
	Leader   bool   `json:"leader,omitempty"`
}

// Binaries is where a server keeps programs; package binary has one.
type Binaries interface {
	Get(sum string) (Binary, bool)
	Add(ctx context.Context, b Binary, r io.Reader) error
	Open(sum string) (*os.File, Binary, error)
}

// Config of a Service. The fields without a default are required.
type Config struct {
	Name    string // of this server
	Version string // of its skiff
	Store   *store.Store
	Log     Log
	Cluster Cluster
	// Binaries is nil on a server that keeps none, as in tests: it takes none then.
	Binaries Binaries
	// From asks another server for a binary, with the caller's headers; what it
	// answers is passed on.
	From func(ctx context.Context, server, sum string, h http.Header) (*http.Response, error)
	// Epoch names the history of the log; default "".
	Epoch func() string
	// Poll is how often the leader looks at the members while something goes on;
	// default 500ms.
	Poll   time.Duration
	Now    func() time.Time // default time.Now
	Logger *slog.Logger
}

// Service is the server's part in roll-outs: what administrators and members ask,
// on any server, and the leader's duty. Safe for concurrent use.
type Service struct {
	c Config

	mu      sync.Mutex
	waits   []string             // what the duty waits for
	drained map[string]time.Time // the last round of a drain, by node
}

// New validates c and starts nothing.
func New(c Config) (*Service, error) {
	if c.Name == "" || c.Store == nil || c.Log == nil || c.Cluster == nil {
		return nil, errors.New("upgrade: Name, Store, Log and Cluster are needed")
	}
	if c.Poll <= 0 {
		c.Poll = 500 * time.Millisecond
	}
	if c.Epoch == nil {
		c.Epoch = func() string { return "" }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{c: c, drained: map[string]time.Time{}}, nil
}

// Refusal is an error that is told to who asked, as it is.
type Refusal struct {
	Status  int    `json:"status"` // of HTTP
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

func refuse(status int, format string, args ...any) error {
	return &Refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// read gives a JSON value of the state and its revision; nil and 0 if there is
// none.
func read[T any](v *store.View, key string) (*T, int64, error) {
	kv, ok := v.Get(key)
	if !ok {
		return nil, 0, nil
	}
	out := new(T)
	if err := json.Unmarshal(kv.Value, out); err != nil {
		return nil, kv.ModRevision, fmt.Errorf("the state's %s can't be read: %w", key, err)
	}
	return out, kv.ModRevision, nil
}

func put(key string, value any, expect int64) (fsm.Op, error) {
	b, err := json.Marshal(value)
	return fsm.Op{Type: fsm.Put, Key: key, Value: b, Expect: expect}, err
}

// errRace says that somebody else has changed the roll-out meanwhile.
var errRace = errors.New("the roll-out has changed meanwhile")

// write stores a roll-out, if it is still at a revision, with orders.
func (s *Service) write(ctx context.Context, r *Rollout, revision int64, orders map[string]Order) error {
	op, err := put(RolloutKey, r, revision)
	ops := []fsm.Op{op}
	for _, name := range sortedNames(orders) {
		o, e := put(OrderPrefix+name, orders[name], fsm.Any)
		ops, err = append(ops, o), errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("encode the roll-out: %w", err)
	}
	cmd := fsm.Batch(ops...)
	res, err := s.c.Log.Propose(ctx, cmd)
	switch {
	case err != nil:
		return fmt.Errorf("write the roll-out: %w", err)
	case res.Err != nil:
		return errRace
	}
	return nil
}

// change writes what f makes of the present roll-out; f may be called again.
func (s *Service) change(ctx context.Context, f func(*Rollout) (*Rollout, map[string]Order, error)) (*Rollout, error) {
	for range 10 {
		if err := s.c.Log.ReadIndex(ctx); err != nil {
			return nil, fmt.Errorf("read the roll-out: %w", err)
		}
		r, revision, err := read[Rollout](s.c.Store.View(), RolloutKey)
		if err != nil {
			return nil, err
		}
		if r != nil {
			r = r.clone()
		}
		next, orders, err := f(r)
		if err != nil {
			return nil, err
		}
		if err = s.write(ctx, next, revision, orders); err == nil {
			return next, nil
		}
		if !errors.Is(err, errRace) {
			return nil, err
		}
	}
	return nil, errRace
}

// Order is what a member is to do; nil: nothing.
func (s *Service) Order(ctx context.Context, name string) (*Order, error) {
	if err := s.c.Log.ReadIndex(ctx); err != nil {
		return nil, fmt.Errorf("read the orders: %w", err)
	}
	o, _, err := read[Order](s.c.Store.View(), OrderPrefix+name)
	return o, err
}

// Report keeps what a member says of its order.
func (s *Service) Report(ctx context.Context, name string, r Report) error {
	o, err := s.Order(ctx, name)
	if err != nil {
		return err
	}
	if o == nil || o.ID != r.Order {
		return nil // it is of an order that nobody waits for any more
	}
	if old, _, _ := read[Report](s.c.Store.View(), ReportPrefix+name); old != nil && *old == r {
		return nil
	}
	op, err := put(ReportPrefix+name, r, fsm.Any)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	res, err := s.c.Log.Propose(ctx, fsm.One(op))
	if err = errors.Join(err, res.Err); err != nil {
		return fmt.Errorf("write the report of %s: %w", name, err)
	}
	return nil
}

// Newest tells how new the newest order is that this server knows, for the
// others (gossip.Tags.Orders); 0 if there is none.
func (s *Service) Newest() (revision uint64) {
	s.c.Store.View().Ascend(OrderPrefix, "", func(kv *store.KeyValue) bool {
		revision = max(revision, uint64(kv.ModRevision))
		return true
	})
	return revision
}

// Follow calls f at the start, and when there may be new orders, until ctx ends.
func (s *Service) Follow(ctx context.Context, f func()) {
	w := s.c.Store.Watch(OrderPrefix, s.c.Store.Revision())
	for ctx.Err() == nil {
		f()
		if _, _, err := w.Next(ctx); err != nil && ctx.Err() == nil {
			w = s.c.Store.Watch(OrderPrefix, s.c.Store.Revision())
		}
	}
}

// Line says in a line how the roll-out goes that is going on; "" if none is.
func (s *Service) Line() string {
	r, _, err := read[Rollout](s.c.Store.View(), RolloutKey)
	if err != nil || r == nil || r.Stage.Over() {
		return ""
	}
	done := 0
	for _, m := range r.Members {
		if m.State == StateDone || m.State == StateBack || m.State == StateUntouched {
			done++
		}
	}
	text := fmt.Sprintf("to %s: %s, %d of %d members", r.Binary.Version, r.Stage, done, len(r.Members))
	switch {
	case r.Stopped != "":
		text += "; STOPPED: " + r.Stopped
	case r.Paused:
		text += "; paused"
	}
	return text
}
