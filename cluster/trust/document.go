package trust

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/storage/value"

	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm/store"
)

const (
	// Key is where the document is in the state. Its value is sealed.
	Key = seal.TrustKey
	// plainPrefix is where versions before kept the keys, readable.
	plainPrefix = "/skiff/pki/"
)

// GossipKeyBytes is the length of a key of gossip.
const GossipKeyBytes = 32

// document is what all members are to trust and to sign with.
type document struct {
	Version int `json:"version"`
	// Generation grows with every change that members have to install.
	Generation uint64 `json:"generation"`
	// Leaves is the generation since which leaf certificates must be.
	Leaves uint64 `json:"leaves"`
	// CAs are trusted; the first signs.
	CAs []authority `json:"cas"`
	// SAKey signs service-account tokens.
	SAKey string `json:"saKey"`
	// GossipKeys are all understood; the first encrypts.
	GossipKeys [][]byte `json:"gossipKeys"`

	CARotation     *Rotation `json:"caRotation,omitempty"`
	GossipRotation *Rotation `json:"gossipRotation,omitempty"`
}

// authority is a pki.CA.
type authority struct {
	Cert  string `json:"cert"`
	Key   string `json:"key,omitempty"` // of one that signs or will sign
	Cross string `json:"cross,omitempty"`
}

// Phase is how far a rotation is.
type Phase string

// The phases in their order. A gossip key's rotation ends after PhaseUse, a
// CA's waits in PhaseOverlap for the administrator.
const (
	PhaseAdd     Phase = "add"     // the new one is trusted, the old one in use
	PhaseUse     Phase = "use"     // the new one is in use, the old one trusted
	PhaseOverlap Phase = "overlap" // all members use the new one, the old one is trusted
)

// Rotation is one that is under way.
type Rotation struct {
	Phase Phase `json:"phase"`
	// Since when it is in this phase.
	Since time.Time `json:"since"`
}

func newRotation() *Rotation { return (&Rotation{}).to(PhaseAdd) }

func (*Rotation) to(p Phase) *Rotation {
	return &Rotation{Phase: p, Since: time.Now().UTC().Truncate(time.Second)}
}

func (d *document) keys() pki.Keys {
	k := pki.Keys{SAKey: []byte(d.SAKey), Leaves: d.Leaves}
	for _, a := range d.CAs {
		k.CAs = append(k.CAs, pki.CA{Cert: []byte(a.Cert), Key: []byte(a.Key), Cross: []byte(a.Cross)})
	}
	return k
}

// firstDocument begins with the keys of p.
func firstDocument(p *pki.PKI, gossip [][]byte) (*document, error) {
	k := p.Keys()
	d := &document{Version: 1, Generation: 1, SAKey: string(k.SAKey), GossipKeys: gossip}
	for _, ca := range k.CAs {
		d.CAs = append(d.CAs, authority{Cert: string(ca.Cert), Key: string(ca.Key), Cross: string(ca.Cross)})
	}
	if len(gossip) == 0 {
		key, err := newGossipKey()
		if err != nil {
			return nil, err
		}
		d.GossipKeys = [][]byte{key}
	}
	return d, d.check()
}

func newGossipKey() ([]byte, error) {
	b := make([]byte, GossipKeyBytes)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("draw a gossip key: %w", err)
	}
	return b, nil
}

// check refuses what members could not install.
func (d *document) check() error {
	switch {
	case d.Version != 1:
		return fmt.Errorf("it has form %d, which this version does not know", d.Version)
	case len(d.CAs) == 0 || d.CAs[0].Key == "":
		return errors.New("it has no CA that signs")
	case len(d.GossipKeys) == 0:
		return errors.New("it has no gossip key")
	}
	for _, k := range d.GossipKeys {
		if len(k) != GossipKeyBytes {
			return fmt.Errorf("a gossip key has %d bytes, want %d", len(k), GossipKeyBytes)
		}
	}
	return nil
}

func decode(plain []byte) (*document, error) {
	d := &document{}
	err := json.Unmarshal(plain, d)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Key, err)
	}
	return d, nil
}

func (d *document) clone() *document {
	c := *d
	c.CAs = append([]authority(nil), d.CAs...)
	c.GossipKeys = append([][]byte(nil), d.GossipKeys...)
	return &c
}

// read gives the document of the local state and its version; nil if there is
// none.
func (t *Trust) read(ctx context.Context, kv *store.KeyValue) (*document, error) {
	if kv == nil {
		return nil, nil
	}
	plain, _, err := t.cfg.Sealer.TransformFromStorage(ctx, kv.Value, value.DefaultContext(Key))
	if err != nil {
		return nil, err
	}
	return decode(plain)
}

func (t *Trust) stored() *store.KeyValue {
	kv, ok := t.cfg.Store.View().Get(Key)
	if !ok {
		return nil
	}
	return kv
}

func (t *Trust) encode(ctx context.Context, d *document) ([]byte, error) {
	plain, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Key, err)
	}
	return t.cfg.Sealer.TransformToStorage(ctx, plain, value.DefaultContext(Key))
}

// Recover gives the files for <data-dir>/pki of a server that starts on a saved
// state. state holds at least what is under /skiff/; key may be nil if nothing
// in it is sealed.
func Recover(state map[string][]byte, key *seal.Key) (map[string][]byte, error) {
	files := map[string][]byte{}
	if _, ok := state[Key]; !ok { // of a version that did not seal
		for k, v := range state {
			if name, ok := strings.CutPrefix(k, plainPrefix); ok {
				files[name] = v
			}
		}
		return files, nil
	}
	plain, err := seal.Open(key, state, Key)
	if err != nil {
		return nil, err
	}
	d, err := decode(plain)
	if err != nil {
		return nil, err
	}
	files[pki.SAKeyFile], files[pki.CAKeyFile] = []byte(d.SAKey), []byte(d.CAs[0].Key)
	if d.CAs[0].Cross != "" {
		files[pki.CrossFile] = []byte(d.CAs[0].Cross)
	}
	var bundle bytes.Buffer
	for _, a := range d.CAs {
		bundle.WriteString(a.Cert)
	}
	files[pki.CACertFile] = bundle.Bytes()
	return files, nil
}

// RecoverGossip gives generation and gossip keys of a saved state, as Recover gives
// the files; none of a state that has no document.
func RecoverGossip(state map[string][]byte, key *seal.Key) (generation uint64, keys [][]byte, err error) {
	if _, ok := state[Key]; !ok {
		return 0, nil, nil
	}
	plain, err := seal.Open(key, state, Key)
	if err != nil {
		return 0, nil, err
	}
	d, err := decode(plain)
	if err != nil {
		return 0, nil, err
	}
	return d.Generation, d.GossipKeys, nil
}
