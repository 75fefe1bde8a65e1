package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// restoredKey is written by each restore, as its first change: the history has it
// at the revision behind the restore's own.
const restoredKey = "/skiff/restored"

// saved is a snapshot, and what it holds.
type saved struct {
	file    []byte
	content map[string]string
}

// saveSnapshot keeps a snapshot for later.
func (w *world) saveSnapshot(r *rand.Rand) {
	m := w.victim(r)
	if m == nil {
		return
	}
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var b bytes.Buffer
		if err := m.node.Snapshot(ctx, &b); err != nil {
			return
		}
		s := saved{file: b.Bytes(), content: map[string]string{}}
		in, err := fsm.NewReader(bytes.NewReader(s.file))
		for err == nil {
			var kv *store.KeyValue
			if kv, err = in.Next(); err == nil {
				if key, ok := strings.CutPrefix(kv.Key, storeKeys); ok {
					s.content[key] = valueOf(w.codec, kv.Value)
				}
			}
		}
		if err != io.EOF {
			w.anomaly("a snapshot of %s can't be read: %v", m.host, err)
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if !m.dead.Load() {
			w.saved = append(w.saved, s)
		}
	})
}

// restoreSnapshot restores one of those that were saved, through any member.
func (w *world) restoreSnapshot(r *rand.Rand) {
	m := pick(r, w.alive())
	w.mu.Lock()
	all, busy := slices.Clone(w.saved), w.restoring
	w.mu.Unlock()
	if m == nil || len(all) == 0 || busy { // servers take one at a time, too
		return
	}
	s := pick(r, all)
	o := op{client: 1002, kind: restore, host: m.host, call: w.clock.Add(1)}
	w.mu.Lock()
	o.value = fmt.Sprintf("restore.%d", len(w.restores))
	w.restores[o.value], w.restoring = s, true
	w.mu.Unlock()
	w.logf("%s through %s", o.value, m.host)
	w.wg.Go(func() {
		err := w.carryOutRestore(m, s, &o)
		w.mu.Lock()
		defer w.mu.Unlock()
		o.ret, w.restoring = w.clock.Add(1), false
		switch {
		case err == nil && !m.dead.Load():
			w.met["snapshot restored into the running cluster"]++
		case o.outcome == done:
			o.outcome = unknown
		}
		w.ops = append(w.ops, o)
	})
}

// carryOutRestore leaves the outcome at done where it may have been.
func (w *world) carryOutRestore(m *member, s saved, o *op) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	info, err := m.node.FileToSpread(ctx, func(out io.Writer) error { _, err := out.Write(s.file); return err })
	if err == nil {
		err = m.node.Spread(ctx, info.Hash, info.TotalSize, nil)
	}
	if err != nil {
		o.outcome, o.why = failed, err.Error()
		return err
	}
	res, err := m.node.Propose(ctx, fsm.Command{Restore: &fsm.Restore{File: info.Hash, Size: info.TotalSize, Keep: []string{"/skiff/"},
		Ops: []fsm.Op{{Type: fsm.Put, Key: restoredKey, Value: []byte(o.value), Expect: fsm.Any}}}})
	o.rev = res.Revision - 1
	if err != nil {
		o.why = err.Error()
		if !unknownOutcome(err) {
			o.outcome = failed
		}
	}
	return err
}

// recordRestore tells of the last restore, whose events may be lost as well.
func (w *world) recordRestore(m *member) {
	kv, ok := m.fsm.Store().View().Get(restoredKey)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, told := w.history[kv.ModRevision]; !told && !m.dead.Load() {
		w.history[kv.ModRevision] = event{key: restoredKey, value: string(kv.Value), from: m.host}
	}
}

// wiped adds to the history a write, or a restore, that a restore followed at once:
// watchers may not have been told of it any more, only who did it. Of one without
// an answer nobody knows what it was. It returns how many revisions it took.
func (w *world) wiped(h *history, rev int64) int64 {
	w.mu.Lock()
	ops := slices.Clone(w.ops)
	w.mu.Unlock()
	for _, o := range ops {
		switch {
		case o.outcome != done || o.rev != rev:
		case o.kind == restore:
			w.jump(h, rev, event{key: restoredKey, value: o.value, from: o.host})
			return 2
		case o.kind <= remove:
			e := seen{rev: rev, key: o.key, value: o.value, host: o.host}
			if o.kind == remove {
				e.value = ""
			}
			h.byKey[e.key] = append(h.byKey[e.key], len(h.events))
			h.events = append(h.events, e)
			return 1
		}
	}
	return 1
}

// jump adds to the history what a restore has changed. e is what it wrote then.
func (w *world) jump(h *history, rev int64, e event) {
	w.mu.Lock()
	s, ok := w.restores[e.value]
	w.mu.Unlock()
	if _, twice := h.jumps[e.value]; !ok || twice {
		w.anomaly("%q was restored at %d, twice: %v", e.value, rev, twice)
		return
	}
	h.jumps[e.value] = rev
	before := h.all(len(h.events))
	changed := map[string]string{}
	for key, v := range before {
		if s.content[key] != v.value {
			changed[key] = s.content[key]
		}
	}
	for key, v := range s.content {
		if before[key].value != v {
			changed[key] = v
		}
	}
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		h.byKey[key] = append(h.byKey[key], len(h.events))
		h.events = append(h.events, seen{rev: rev, key: key, value: changed[key], host: e.from, jump: true})
	}
	h.head = rev
}

// settleRestore says whether a restore took effect.
func (w *world) settleRestore(h *history, o op, out []op) []op {
	rev, ok := h.jumps[o.value]
	delete(h.jumps, o.value)
	switch {
	case o.outcome == done && (!ok || rev != o.rev):
		w.anomaly("lost or another: %v; the history has %d", o, rev)
	case o.outcome == failed && ok:
		w.anomaly("it was said that nothing was restored: %v", o)
	case ok:
		o.rev = rev
		return append(out, o)
	}
	return out
}

func unknownOutcome(err error) bool { return errors.Is(err, consensus.ErrUnknownOutcome) }
