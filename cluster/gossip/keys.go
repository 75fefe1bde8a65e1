package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"
)

const keyBytes = 32

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip: no keys: gossip is always encrypted")
	}
	for i, k := range keys {
		if len(k) != keyBytes {
			return fmt.Errorf("gossip: key %d has %d bytes: %d are needed", i+1, len(k), keyBytes)
		}
	}
	return nil
}

func newKeyring(keys [][]byte) (*memberlist.Keyring, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	return memberlist.NewKeyring(keys, keys[0])
}

// SetKeys makes the keys those of the list; the first encrypts from now on.
// Members that lack it hear this one no longer, so a rotation adds the new key
// everywhere, then uses it everywhere, then drops the old one.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	g.keysMu.Lock()
	defer g.keysMu.Unlock()
	before := g.keyring.GetKeys()
	for _, k := range keys {
		if err := g.keyring.AddKey(bytes.Clone(k)); err != nil {
			return fmt.Errorf("gossip: add a key: %w", err)
		}
	}
	if err := g.keyring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip: use the first key: %w", err)
	}
	wanted := func(k []byte) bool {
		for _, w := range keys {
			if bytes.Equal(k, w) {
				return true
			}
		}
		return false
	}
	// The last goes first: the keyring moves those behind a removed one within a
	// slice that packets under way may be reading.
	installed := g.keyring.GetKeys()
	for i := len(installed) - 1; i >= 0; i-- {
		if wanted(installed[i]) {
			continue
		}
		if err := g.keyring.RemoveKey(installed[i]); err != nil {
			return fmt.Errorf("gossip: remove a key: %w", err)
		}
	}
	if !slices.EqualFunc(before, g.keyring.GetKeys(), bytes.Equal) {
		g.log.Info("gossip keys changed", "keys", len(keys))
	}
	return nil
}
