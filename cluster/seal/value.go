package seal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
)

const (
	// Prefix is where data keys are in the state; the rest of the key is their
	// number.
	Prefix = "/skiff/keys/"
	// FileKey holds the cluster key in the form under its passphrase, if it has
	// one: a snapshot and the passphrase are then enough for a restore.
	FileKey = "/skiff/cluster-key"
	// TrustKey is the document of package trust.
	TrustKey = "/skiff/trust"
)

// magic begins every sealed value. The number of the data key follows, then a
// colon. No object begins so: they are Protobuf with a magic of its own, or JSON.
const magic = "skiff:sealed:1:"

// ErrKeyGone says that a value is sealed with a data key that is no longer in
// the state: the version is a past one.
var ErrKeyGone = errors.New("the data key of this version has been dropped")

// record is a data key as the state has it.
type record struct {
	Version    int       `json:"version"`
	ClusterKey string    `json:"clusterKey"` // ID of the key that Wrapped needs
	Created    time.Time `json:"created"`
	Wrapped    []byte    `json:"wrapped"`
}

func recordKey(n uint64) string { return fmt.Sprintf("%s%06d", Prefix, n) }

func recordNumber(storeKey string) (uint64, error) {
	n, err := strconv.ParseUint(storeKey[len(Prefix):], 10, 64)
	if err != nil || n == 0 || recordKey(n) != storeKey {
		return 0, fmt.Errorf("%s is no number of a data key", storeKey)
	}
	return n, nil
}

// newRecord draws a data key.
func newRecord(k *Key, n uint64, now time.Time) ([]byte, error) {
	raw := make([]byte, keyBytes)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("draw a data key: %w", err)
	}
	wrapped, err := k.Wrap(recordKey(n), raw)
	if err != nil {
		return nil, err
	}
	return json.Marshal(record{Version: 1, ClusterKey: k.id, Created: now.UTC().Truncate(time.Second), Wrapped: wrapped})
}

// dataKey is one that has been opened.
type dataKey struct {
	number  uint64
	created time.Time
	by      value.Transformer
}

func openRecord(k *Key, n uint64, b []byte) (*dataKey, error) {
	r, err := parseRecord(n, b)
	if err != nil {
		return nil, err
	}
	if r.ClusterKey != k.id {
		return nil, fmt.Errorf("data key %d is sealed with cluster key %s, but the one given is %s: the right %s is on the cluster's other servers or where its copy is kept", n, r.ClusterKey, k.id, KeyFile)
	}
	raw, err := k.Unwrap(recordKey(n), r.Wrapped)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, fmt.Errorf("data key %d: %w", n, err)
	}
	by, err := aestransformer.NewGCMTransformer(block)
	if err != nil {
		return nil, fmt.Errorf("data key %d: %w", n, err)
	}
	return &dataKey{number: n, created: r.Created, by: by}, nil
}

func parseRecord(n uint64, b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("data key %d: %w", n, err)
	}
	if r.Version != 1 {
		return r, fmt.Errorf("data key %d has form %d, which this version does not know", n, r.Version)
	}
	return r, nil
}

// seal gives the stored form of plain under storeKey.
func (d *dataKey) seal(ctx context.Context, storeKey, plain []byte) ([]byte, error) {
	b, err := d.by.TransformToStorage(ctx, plain, value.DefaultContext(storeKey))
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", storeKey, err)
	}
	out := make([]byte, 0, len(magic)+8+len(b))
	out = strconv.AppendUint(append(out, magic...), d.number, 10)
	return append(append(out, ':'), b...), nil
}

// Number is that of the data key that a stored value is sealed with; 0 if it is
// plain.
func Number(stored []byte) (uint64, error) {
	n, _, err := split(stored)
	return n, err
}

// split parts a stored value into the number of its data key and the rest.
func split(stored []byte) (uint64, []byte, error) {
	rest, ok := bytes.CutPrefix(stored, []byte(magic))
	if !ok {
		return 0, stored, nil
	}
	number, body, ok := bytes.Cut(rest, []byte(":"))
	n, err := strconv.ParseUint(string(number), 10, 64)
	if !ok || err != nil || n == 0 {
		return 0, nil, errors.New("a sealed value names no data key")
	}
	return n, body, nil
}

// open gives the plain form of the value stored under storeKey; find returns
// data keys.
func open(ctx context.Context, storeKey, stored []byte, find func(n uint64) (*dataKey, error)) (plain []byte, n uint64, err error) {
	n, body, err := split(stored)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s: %w", storeKey, err)
	}
	if n == 0 {
		return stored, 0, nil
	}
	d, err := find(n)
	if err != nil {
		return nil, n, fmt.Errorf("open %s: %w", storeKey, err)
	}
	if plain, _, err = d.by.TransformFromStorage(ctx, body, value.DefaultContext(storeKey)); err != nil {
		return nil, n, fmt.Errorf("open %s with data key %d: it was changed, or belongs to another key of the store", storeKey, n)
	}
	return plain, n, nil
}

// Open opens a value of a state that no process runs on, such as a snapshot's.
// state holds at least what is under Prefix.
func Open(k *Key, state map[string][]byte, storeKey string) ([]byte, error) {
	stored, ok := state[storeKey]
	if !ok {
		return nil, fmt.Errorf("%s is not there", storeKey)
	}
	plain, _, err := open(context.Background(), []byte(storeKey), stored, func(n uint64) (*dataKey, error) {
		b, ok := state[recordKey(n)]
		if !ok {
			return nil, fmt.Errorf("data key %d is missing", n)
		}
		if k == nil {
			return nil, errors.New("the cluster key is needed")
		}
		return openRecord(k, n, b)
	})
	return plain, err
}
