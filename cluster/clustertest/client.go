package clustertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
)

// kind of an operation.
type kind byte

const (
	create kind = iota
	update      // of the version expect; of any, or none, if expect is 0
	remove      // of the version expect; of any if expect is 0
	get
	list
	localGet // what is here, however old
	listAt   // the state at revision expect
	restore  // of a snapshot into the running cluster: value is its ID
	jump     // what a restore made of one key
)

var kindNames = [...]string{"create", "update", "delete", "get", "list", "get rv=0", "list at", "restore", "restored"}

// outcome of an operation.
type outcome byte

const (
	done     outcome = iota
	exists           // a create found one
	missing          // there was none
	conflict         // there was another version
	unknown          // of a write that may or may not have taken effect
	failed           // nothing was done
)

var outcomeNames = [...]string{"done", "exists", "missing", "conflict", "unknown", "failed"}

// version is what a key holds.
type version struct {
	value string
	rev   int64
}

// op is one operation of a client, with the moments of its call and return.
type op struct {
	client    int
	kind      kind
	key       string
	value     string // that it writes, or has read or deleted
	expect    int64
	outcome   outcome
	rev       int64              // of the write, the version read, or the list
	items     map[string]version // of a list
	call, ret int64
	host      string
	took      time.Duration
	why       string
}

func (o op) String() string {
	return fmt.Sprintf("client %d on %s [%d,%d]: %s %s=%q expect %d: %s rev %d %d items %s", o.client, o.host, o.call, o.ret,
		kindNames[o.kind], o.key, o.value, o.expect, outcomeNames[o.outcome], o.rev, len(o.items), o.why)
}

var keys = []string{"x/1", "x/2", "x/3", "y/1", "y/2", "y/3", "y/4"}

// storeKeys is where the store has the keys of the clients.
const storeKeys = "/registry/pods/"

// client does one operation after the other, on members as they come, until
// ctx ends.
func (w *world) client(ctx context.Context, n int) {
	r := rand.New(rand.NewPCG(w.seed, 100+uint64(n)))
	seen := map[string]int64{} // revisions that it knows
	newest := int64(0)
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(r.Int64N(int64(250 * time.Millisecond))))
		m := pick(r, w.alive())
		if m == nil {
			continue
		}
		o := op{client: n, key: pick(r, keys), value: fmt.Sprintf("%d.%d", n, i)}
		switch x := r.IntN(100); {
		case x < 20:
			o.kind = create
		case x < 50:
			if o.kind = update; r.IntN(3) > 0 {
				o.expect = seen[o.key]
			}
		case x < 60:
			o.kind = remove
			if r.IntN(2) == 0 {
				o.expect = seen[o.key]
			}
		case x < 80:
			o.kind = get
		case x < 90:
			o.kind = list
		case x < 95 || newest == 0:
			o.kind = localGet
		default:
			o.kind, o.expect = listAt, 1+r.Int64N(newest)
		}
		w.do(ctx, m, &o, time.Duration(1+r.IntN(8))*time.Second)
		switch {
		case o.items != nil:
			for k, v := range o.items {
				seen[k] = v.rev
			}
		case o.outcome == done && o.kind != remove:
			seen[o.key] = o.rev
		}
		newest = max(newest, o.rev)
	}
}

// do carries out o on m and adds it to the history.
func (w *world) do(ctx context.Context, m *member, o *op, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begin := time.Now()
	o.host, o.call = m.host, w.clock.Add(1)
	err := o.carryOut(ctx, m)
	w.mu.Lock()
	defer w.mu.Unlock()
	o.ret, o.took = w.clock.Add(1), time.Since(begin)
	switch {
	case m.dead.Load(): // the answer did not leave the house
		o.outcome = failed
		if o.kind <= remove {
			o.outcome, o.why = unknown, "the server died"
		}
	case err == nil:
	case storage.IsExist(err):
		o.outcome = exists
	case storage.IsNotFound(err):
		o.outcome = missing
	case storage.IsConflict(err), storage.IsInvalidObj(err):
		o.outcome = conflict
	case apierrors.IsServiceUnavailable(err), apierrors.IsResourceExpired(err):
		o.outcome = failed
	default:
		o.outcome = failed
		if o.kind <= remove {
			o.outcome = unknown
		}
		if !apierrors.IsTimeout(err) && !errors.Is(err, context.Canceled) {
			w.anomalies = append(w.anomalies, fmt.Sprintf("%v: an error that clients can't tell apart: %v (%T)", o, err, err))
		}
	}
	if err != nil {
		o.why = err.Error()
	}
	w.ops = append(w.ops, *o)
}

func (o *op) carryOut(ctx context.Context, m *member) error {
	key := "/pods/" + o.key
	out := &example.Pod{}
	pre := &storage.Preconditions{}
	if o.expect != 0 {
		rv := strconv.FormatInt(o.expect, 10)
		pre.ResourceVersion = &rv
	}
	switch o.kind {
	case create:
		err := m.pods.Create(ctx, key, pod(o.key, o.value), out, 0)
		o.rev = revisionOf(out)
		return err
	case update:
		err := m.pods.GuaranteedUpdate(ctx, key, out, o.expect == 0, pre,
			func(runtime.Object, storage.ResponseMeta) (runtime.Object, *uint64, error) {
				return pod(o.key, o.value), nil, nil
			}, nil)
		o.rev = revisionOf(out)
		return err
	case remove:
		err := m.pods.Delete(ctx, key, out, pre, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
		o.value, o.rev = out.Annotations[annotation], revisionOf(out)
		return err
	case get, localGet:
		rv := ""
		if o.kind == localGet {
			rv = "0"
		}
		err := m.pods.Get(ctx, key, storage.GetOptions{ResourceVersion: rv}, out)
		o.value, o.rev = out.Annotations[annotation], revisionOf(out)
		return err
	}
	opts := storage.ListOptions{Recursive: true, Predicate: storage.Everything}
	if o.kind == listAt {
		opts.ResourceVersion, opts.ResourceVersionMatch = strconv.FormatInt(o.expect, 10), metav1.ResourceVersionMatchExact
	}
	all := &example.PodList{}
	if err := m.pods.GetList(ctx, "/pods/", opts, all); err != nil {
		return err
	}
	var err error
	o.rev, err = strconv.ParseInt(all.ResourceVersion, 10, 64)
	o.items = map[string]version{}
	for i := range all.Items {
		p := &all.Items[i]
		o.items[p.Name] = version{p.Annotations[annotation], revisionOf(p)}
	}
	return err
}

func revisionOf(p *example.Pod) int64 {
	v, _ := strconv.ParseInt(p.ResourceVersion, 10, 64)
	return v
}
