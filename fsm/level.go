package fsm

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/skiff-sh/skiff/fsm/store"
)

// LevelKey is where the state has the feature level of the cluster, in decimal;
// absent is 1. The level only rises, when every member runs a program that knows
// the next one; until then each of them can go back to the program before.
const LevelKey = "/skiff/feature-level"

// MinLevel is the lowest feature level that this program works at.
const MinLevel = 1

// MaxLevel is the highest.
const MaxLevel = MinLevel + nextLevels

// ErrLevel says that a cluster works at a feature level that a program does not
// know.
var ErrLevel = errors.New("feature level is not known to this version of skiff")

// levelError is an ErrLevel that says what to do.
type levelError string

func (e levelError) Error() string        { return string(e) }
func (e levelError) Is(target error) bool { return target == ErrLevel }

// Level says which versions a cluster uses of what several programs have to
// understand. Newer ones are read, and never written, below their level.
type Level struct {
	Command  int    // of the log, see MaxCommandVersion
	Snapshot uint32 // of the format, see FormatVersion
	RPC      int    // of the Raft port
	Gossip   int    // of what members say of themselves
	Shim     int    // of the shims that hold containers
}

// levels are those from MinLevel on. One is appended when a version rises.
var levels = append([]Level{
	{Command: 1, Snapshot: 1, RPC: 1, Gossip: 1, Shim: 1},
}, furtherLevels...)

// AtLevel gives what a cluster of that level uses; of a level that is not known
// (see CheckLevel), what one of the nearest known does.
func AtLevel(level int) Level { return levels[min(max(level, MinLevel), MaxLevel)-MinLevel] }

// CheckLevel says, as an ErrLevel, why this program does not work in a cluster
// of that level, and what does.
func CheckLevel(level int) error {
	switch {
	case level == unreadable:
		return levelError("the cluster's feature level can't be read: run the version that the other members run")
	case level > MaxLevel:
		return levelError(fmt.Sprintf("the cluster is at feature level %d, and this program works up to %d: run the version that the other members run, or a newer one", level, MaxLevel))
	case level < MinLevel:
		return levelError(fmt.Sprintf("the cluster is at feature level %d, and this program works from %d on: run the version before first, on every member, then skiff upgrade finalize, then this one", level, MinLevel))
	}
	return nil
}

// LevelOf is the feature level of a state. What can't be read is a level that no
// program knows.
func LevelOf(v *store.View) int {
	kv, ok := v.Get(LevelKey)
	if !ok {
		return 1
	}
	return parseLevel(kv.Value)
}

const unreadable = 1 << 30

func parseLevel(b []byte) int {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 1 {
		return unreadable
	}
	return n
}

// Level is the feature level of the state as it is here now.
func (f *FSM) Level() int { return LevelOf(f.store.View()) }

// SetLevel is the command that raises the level from what a view shows.
func SetLevel(v *store.View, level int) Command {
	op := Op{Type: Put, Key: LevelKey, Value: strconv.AppendInt(nil, int64(level), 10)}
	if kv, ok := v.Get(LevelKey); ok {
		op.Expect = kv.ModRevision
	}
	return One(op)
}

// Clear gives the commands that delete all keys which begin with a prefix, in
// the form of the view's level. Keys that change before they take effect stay.
func Clear(v *store.View, prefix string) []Command {
	if c, ok := clearAtOnce(LevelOf(v), prefix); ok {
		return c
	}
	var ops []Op
	v.Ascend(prefix, "", func(kv *store.KeyValue) bool {
		ops = append(ops, Op{Type: Delete, Key: kv.Key, Expect: kv.ModRevision})
		return true
	})
	var out []Command
	for part := range slices.Chunk(ops, MaxBatchOps) {
		out = append(out, Batch(part...))
	}
	return out
}

// further is a command of a type that not all versions know. This version has
// none unless it is built with the tag nextlevel.
type further struct {
	typ   uint64
	body  []byte
	apply func(*store.Txn) Result
}
