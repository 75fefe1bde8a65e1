package main

import (
	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/seal"
)

// restoreFiles gives what a restored server knows of the other members, see
// cluster.RestoredFiles. Without a key, which only a state that nothing is sealed in
// goes without, there is nothing to know.
func restoreFiles(keyFile, passphraseFile string) (func(*backup.Info, map[string][]byte) (map[string][]byte, error), error) {
	passphrase, err := seal.ReadPassphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	find, err := clusterKey(keyFile, passphrase)
	if find == nil || err != nil {
		return nil, err
	}
	return func(info *backup.Info, state map[string][]byte) (map[string][]byte, error) {
		key, err := find(state)
		if err != nil {
			return nil, err
		}
		return cluster.RestoredFiles(info, state, key)
	}, nil
}

// lockExisting keeps a server out of a directory that is restored into, if it is
// there.
func lockExisting(dir string) (unlock func(), err error) {
	if there, err := exists(dir); err != nil || !there {
		return func() {}, err
	}
	lock, err := consensus.LockDir(dir)
	if err != nil {
		return nil, err
	}
	return lock.Unlock, nil
}
