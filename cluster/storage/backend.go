// Package storage is the storage.Interface of the API library on the replicated
// store: reads come from the local copy, writes are proposed to the log.
//
// Invariants:
//
//   - A read without a resourceVersion waits for a read index, so it sees every
//     write that was acknowledged before it began, on any server. A read with
//     resourceVersion=0 never leaves this process.
//
//   - Every write names the revision it was decided on. A decision made on a
//     stale local copy is therefore refused by the log and made again.
//
//   - What a stored version decodes to is shared by all readers of that version
//     for as long as one of them holds it, and is never changed. Whoever passes
//     an object on hands out a shallow copy, because the codec writes TypeMeta
//     in place.
//
//   - The stored form of what is secret is sealed (Config.Sealer): it is opened
//     where it is decoded and sealed where it is encoded, nowhere else.
//
// Limits: a watch holds up to a few dozen undelivered events and reads the rest
// from the store's history.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Log is where writes go; cluster/consensus implements it.
type Log interface {
	// Propose returns when the command is durable and applied, or has failed.
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
	// ReadIndex returns when the local store holds everything that was
	// acknowledged before the call.
	ReadIndex(ctx context.Context) error
}

// KeyPrefix is where API objects live in the store.
const KeyPrefix = "/registry"

// Config is what a Backend needs.
type Config struct {
	Store *store.Store
	Log   Log
	// BookmarkInterval is how often idle watches are told how far they have
	// seen, if anything was written meanwhile. Zero is one minute.
	BookmarkInterval time.Duration
	// Ready is closed when Store has caught up with the log once since the process
	// began; nil: it has. Before, the store may lack what clients have seen long
	// ago, and nothing at all is read from it.
	Ready <-chan struct{}
	// Sealer seals the stored form of Secrets; without one they are stored plain.
	Sealer Sealer
	Logger *slog.Logger
}

// Backend is what the storages of all resources share.
type Backend struct {
	store    *store.Store
	log      Log
	interval time.Duration
	sealer   Sealer
	logger   *slog.Logger
	ready    <-chan struct{}

	// rounds counts bookmark rounds; a watch compares it to know that one is due.
	rounds atomic.Int64
	// behind: since the last round, a watch began that was not up to date.
	behind atomic.Bool
	// rearm wakes Expire after a write with a time to live.
	rearm chan struct{}
}

// New validates c. Resources may be made at once; they work as soon as the log
// does.
func New(c Config) (*Backend, error) {
	if c.Store == nil || c.Log == nil {
		return nil, errors.New("storage needs a store and a log")
	}
	if c.BookmarkInterval <= 0 {
		c.BookmarkInterval = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Backend{store: c.Store, log: c.Log, interval: c.BookmarkInterval, sealer: c.Sealer, logger: c.Logger,
		ready: c.Ready, rearm: make(chan struct{}, 1)}, nil
}

// Run sends bookmark rounds until ctx ends. In a quiet cluster it does nothing
// but look at one number a round.
func (b *Backend) Run(ctx context.Context) error {
	t := time.NewTicker(b.interval)
	defer t.Stop()
	told := int64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		rev := b.store.Revision()
		if b.behind.Swap(false) || rev != told {
			told = rev
			b.bookmarks()
		}
	}
}

// bookmarks makes every watch that may report progress do so.
func (b *Backend) bookmarks() {
	b.rounds.Add(1)
	b.store.Nudge()
}

// get returns the newest local version of a key, or nil.
func (b *Backend) get(key string) *store.KeyValue {
	kv, _ := b.store.View().Get(key)
	return kv
}

// readyWait is how long a reader waits for a store that has not caught up since
// the start: as long as others wait for a leader.
const readyWait = 5 * time.Second

// awaitReady waits until the store has been current once.
func (b *Backend) awaitReady(ctx context.Context) error {
	if b.ready == nil {
		return nil
	}
	select {
	case <-b.ready:
		return nil
	default:
	}
	select {
	case <-b.ready:
		return nil
	case <-time.After(readyWait):
		return logError(fmt.Errorf("%w that this server has heard of since it started", consensus.ErrNoLeader), "read")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readIndex waits until the local store is current.
func (b *Backend) readIndex(ctx context.Context) error {
	return logError(b.log.ReadIndex(ctx), "read")
}
