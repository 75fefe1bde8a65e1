package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	retryFirst = 5 * time.Millisecond
	retryMax   = 30 * time.Second
)

// ErrAgain makes a key come back after an exponential delay, without a log line:
// nothing went wrong, there is only more to do later.
var ErrAgain = errors.New("not finished yet")

// SyncFunc brings one object closer to what it should be. It is never called
// twice at a time for the same key. An error makes the key come back after an
// exponential delay; a key that no longer exists is no error.
type SyncFunc func(ctx context.Context, key string) error

// LoopConfig describes a Loop.
type LoopConfig struct {
	// Name appears in logs.
	Name string
	// Sync handles one key.
	Sync SyncFunc
	// Workers is how many keys are handled at a time; at least 1.
	Workers int
	// MinInterval is the least time between two syncs of one key that Add asked
	// for. The first of a burst runs at once, the rest of it shares one run at
	// the end of the interval: no delay when quiet, bounded work when busy.
	MinInterval time.Duration
	// Logger receives failed syncs.
	Logger *slog.Logger
}

// Loop calls a sync function for keys that were added to it.
type Loop struct {
	LoopConfig
	queue    workqueue.TypedRateLimitingInterface[string]
	handlers []cache.DoneChecker

	mu   sync.Mutex
	last map[string]time.Time // when each key was last synced; guarded by mu
}

// NewLoop returns a loop that does nothing before Run.
func NewLoop(cfg LoopConfig) *Loop {
	if cfg.Workers < 1 {
		cfg.Workers = 1
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryMax)
	return &Loop{
		LoopConfig: cfg,
		queue:      workqueue.NewTypedRateLimitingQueue(limiter),
		last:       map[string]time.Time{},
	}
}

// Add asks for a sync of key. It never blocks, and may be called at any time.
func (l *Loop) Add(key string) {
	if l.MinInterval <= 0 {
		l.queue.Add(key)
		return
	}
	l.mu.Lock()
	last, seen := l.last[key]
	l.mu.Unlock()
	if rest := l.MinInterval - time.Since(last); seen && rest > 0 {
		l.queue.AddAfter(key, rest)
		return
	}
	l.queue.Add(key)
}

// AddNow asks for a sync of key without regard to MinInterval.
func (l *Loop) AddNow(key string) { l.queue.Add(key) }

// AddAfter asks for a sync of key when d has passed.
func (l *Loop) AddAfter(key string, d time.Duration) { l.queue.AddAfter(key, d) }

// Watch registers on for every change that inf reports: old is nil for an added
// object, cur for a deleted one. Run waits until on has seen the initial list.
// It is for use before Run, by constructors.
func Watch[T any](l *Loop, inf cache.SharedIndexInformer, on func(old, cur *T)) error {
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if cur, ok := obj.(*T); ok {
				on(nil, cur)
			}
		},
		UpdateFunc: func(before, after any) {
			old, ok := before.(*T)
			cur, also := after.(*T)
			if ok && also {
				on(old, cur)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if old, ok := obj.(*T); ok {
				on(old, nil)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch for %s: %w", l.Name, err)
	}
	l.handlers = append(l.handlers, reg.HasSyncedChecker())
	return nil
}

// Needs makes Run wait until inf has its initial list, for informers that are
// only read from.
func (l *Loop) Needs(inf cache.SharedIndexInformer) {
	l.handlers = append(l.handlers, inf.HasSyncedChecker())
}

// Run waits for the informers, then syncs until ctx ends and the last sync has
// returned. It can be run once.
func (l *Loop) Run(ctx context.Context) error {
	defer l.queue.ShutDown()
	if !cache.WaitFor(ctx, "", l.handlers...) {
		return nil // ctx ended first
	}
	var wg sync.WaitGroup
	for range l.Workers {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	l.queue.ShutDown()
	wg.Wait()
	return nil
}

// next handles one key; false when the queue has been shut down.
func (l *Loop) next(ctx context.Context) bool {
	key, closed := l.queue.Get()
	if closed {
		return false
	}
	defer l.queue.Done(key)
	if ctx.Err() != nil {
		return true
	}
	l.note(key)
	err := l.syncSafely(ctx, key)
	switch {
	case err == nil:
		l.queue.Forget(key)
	case ctx.Err() != nil: // on the way out
	default:
		l.report(key, err)
		l.queue.AddRateLimited(key)
	}
	return true
}

// syncSafely turns a panic into an error: one broken object must not take the
// process, and with it every other controller, down.
func (l *Loop) syncSafely(ctx context.Context, key string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return l.Sync(ctx, key)
}

// report logs a failed sync; conflicts are how controllers learn that their
// cache is behind, and stay quiet.
func (l *Loop) report(key string, err error) {
	level := slog.LevelWarn
	if apierrors.IsConflict(err) || errors.Is(err, context.Canceled) || errors.Is(err, ErrAgain) {
		level = slog.LevelDebug
	}
	l.Logger.Log(context.Background(), level, "sync failed, will retry", "controller", l.Name, "key", key, "error", err)
}

// note remembers the time of key's sync and forgets those that no longer matter.
func (l *Loop) note(key string) {
	if l.MinInterval <= 0 {
		return
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) > 512 {
		for k, at := range l.last {
			if now.Sub(at) > l.MinInterval {
				delete(l.last, k)
			}
		}
	}
	l.last[key] = now
}

// RunAll runs loops side by side and returns when all of them have.
func RunAll(ctx context.Context, loops ...*Loop) error {
	var wg sync.WaitGroup
	errs := make([]error, len(loops))
	for i, l := range loops {
		wg.Go(func() { errs[i] = l.Run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Key is the queue key of an object: namespace/name, or name alone.
func Key(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// SplitKey is the inverse of Key.
func SplitKey(key string) (namespace, name string) {
	for i := range len(key) {
		if key[i] == '/' {
			return key[:i], key[i+1:]
		}
	}
	return "", key
}
