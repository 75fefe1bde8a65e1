//go:build nextlevel

package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/skiff-sh/skiff/fsm/store"
)

// A program with the build tag nextlevel stands for the version to come: it
// knows one more feature level, whose log has one more type of command and whose
// snapshots have another form. Tests upgrade a cluster to it and back, so that
// all that depends on levels is tried before there is a second one.
const (
	nextLevels   = 1
	nextCommand  = 2
	nextSnapshot = 2

	// typeClear deletes all keys that begin with its body. Its number is far from
	// those that versions to come will use.
	typeClear = 1 << 20
)

var furtherLevels = []Level{{Command: 2, Snapshot: 2, RPC: 1, Gossip: 1, Shim: 1}}

func init() { commandVersions[typeClear] = 2 }

func decodeFurther(typ uint64, body []byte) (*further, bool, error) {
	if typ != typeClear {
		return nil, false, nil
	}
	prefix := string(body)
	if prefix == "" || len(prefix) > MaxKeyBytes {
		return nil, true, fmt.Errorf("clear: prefix of %d bytes", len(prefix))
	}
	return &further{typ: typ, body: body, apply: func(tx *store.Txn) Result { return clearPrefix(tx, prefix) }}, true, nil
}

func clearPrefix(tx *store.Txn, prefix string) (r Result) {
	tx.Ascend(prefix, func(kv *store.KeyValue) bool {
		r.Current, r.Err = tx.Delete(kv.Key, Any)
		return r.Err == nil
	})
	r.Revision = tx.Revision()
	return r
}

func clearAtOnce(level int, prefix string) ([]Command, bool) {
	if AtLevel(level).Command < 2 {
		return nil, false
	}
	f, _, err := decodeFurther(typeClear, []byte(prefix))
	return []Command{{further: f}}, err == nil
}

// The second format says the level in the header.
func appendHeader(b []byte, h *Header) []byte {
	if h.Format < 2 {
		return b
	}
	return binary.AppendUvarint(b, uint64(h.Format))
}

func decodeHeader(d *decoder, h *Header) {
	if h.Format >= 2 && d.uvarint() != uint64(h.Format) {
		d.fail()
	}
}
