package fsm

import (
	"errors"
	"fmt"

	"github.com/skiff-sh/skiff/fsm/store"
)

// Limits of one command. They hold where commands are encoded; what is in the
// log is applied whatever its size.
const (
	MaxKeyBytes     = 4 << 10
	MaxCommandBytes = 8 << 20
	MaxBatchOps     = 10_000
)

// Any as Op.Expect accepts any state of the key.
const Any = -1

// ErrInvalid says that a command can't be encoded: it is the proposer's fault.
var ErrInvalid = errors.New("invalid command")

// OpType says what an Op does. The numbers are part of the log format.
type OpType uint8

// The operations.
const (
	Put    OpType = 1
	Delete OpType = 2
)

func (t OpType) String() string {
	switch t {
	case Put:
		return "put"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("op(%d)", uint8(t))
}

// Op is one change of one key.
type Op struct {
	Type    OpType
	Key     string
	Value   []byte // of a put
	Expect  int64  // ModRevision the key must have; 0: it must not exist; Any: no condition
	Expires int64  // of a put: unix seconds when the leader is to delete it; 0 is never
}

// Configuration changes settings of the whole cluster.
type Configuration struct {
	// ClusterID names the cluster. It can be set once: setting another later is
	// store.ErrExists, setting the same again does nothing.
	ClusterID string
}

// Command is what one proposer wants done: one Op, several Ops of which all or
// none take effect, a Configuration, or a Restore.
type Command struct {
	Ops           []Op
	Configuration *Configuration
	Restore       *Restore
	further       *further
}

// One is a command of one operation.
func One(op Op) Command { return Command{Ops: []Op{op}} }

// Batch is a command of which all operations take effect, or none.
func Batch(ops ...Op) Command { return Command{Ops: ops} }

// Validate says, wrapping ErrInvalid, why the command could not be proposed.
func (c Command) Validate() error {
	if c.Restore != nil {
		if len(c.Ops) > 0 || c.Configuration != nil {
			return fmt.Errorf("%w: a restore and something else", ErrInvalid)
		}
		if err := c.Restore.validate(); err != nil {
			return fmt.Errorf("%w: restore: %w", ErrInvalid, err)
		}
		return nil
	}
	if c.further != nil {
		if len(c.Ops) > 0 || c.Configuration != nil {
			return fmt.Errorf("%w: more than one kind of command", ErrInvalid)
		}
		return nil
	}
	if c.Configuration != nil {
		if len(c.Ops) > 0 {
			return fmt.Errorf("%w: both operations and a configuration", ErrInvalid)
		}
		if c.Configuration.ClusterID == "" {
			return fmt.Errorf("%w: configuration without a cluster id", ErrInvalid)
		}
		return nil
	}
	if len(c.Ops) == 0 || len(c.Ops) > MaxBatchOps {
		return fmt.Errorf("%w: %d operations, must be 1 to %d", ErrInvalid, len(c.Ops), MaxBatchOps)
	}
	for i := range c.Ops {
		if err := c.Ops[i].validate(); err != nil {
			return fmt.Errorf("%w: operation %d: %w", ErrInvalid, i, err)
		}
	}
	return nil
}

func (o *Op) validate() error {
	switch {
	case o.Type != Put && o.Type != Delete:
		return fmt.Errorf("unknown type %d", o.Type)
	case o.Key == "" || len(o.Key) > MaxKeyBytes:
		return fmt.Errorf("key of %d bytes, must be 1 to %d", len(o.Key), MaxKeyBytes)
	case o.Expect < Any:
		return fmt.Errorf("expected revision %d is negative", o.Expect)
	case o.Expires < 0:
		return fmt.Errorf("expiry %d is negative", o.Expires)
	case o.Type == Delete && (len(o.Value) > 0 || o.Expires != 0):
		return errors.New("delete with a value or an expiry")
	}
	return nil
}

// Result is what became of one command.
type Result struct {
	// Revision is that of the last change the command made; every operation of a
	// batch has its own, so the first is Revision-len(Ops)+1. Without a change it
	// is the store's revision at that moment.
	Revision int64
	// Err is nil, store.ErrConflict, store.ErrExists or store.ErrNotFound. With
	// an error nothing was changed.
	Err error
	// Op is the index of the operation that Err is about.
	Op int
	// Current is the version that a put made or a delete removed (of a batch: the
	// last operation's), or with Err the version that stood against it, if any.
	Current *store.KeyValue
}
