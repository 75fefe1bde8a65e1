package pki

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// Names of the files in the directory. CACertFile holds all CAs that are
// trusted, CAKeyFile the key of the one that signs. CrossFile is there while a
// CA is being replaced.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
	SAKeyFile  = "sa.key"
	CrossFile  = "ca-cross.crt"
	// keyIDFile tells which cluster key belongs here, in case that gets lost:
	// versions before had none, so its absence alone says nothing.
	keyIDFile = "cluster.key.id"
)

var (
	required = []string{CACertFile, CAKeyFile, SAKeyFile}
	private  = map[string]bool{CAKeyFile: true, SAKeyFile: true}
)

// PutBack is what to do when one of the files is lost or damaged.
const PutBack = "put it back, every server of the cluster has the same; if it is lost everywhere, skiff snapshot restore makes a new data directory with all keys"

// sealedFile is the PEM type of a private key that the cluster key seals.
const sealedFile = "SKIFF SEALED KEY"

func readFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	var missing []string
	for _, name := range []string{CACertFile, CAKeyFile, SAKeyFile, CrossFile, seal.KeyFile, keyIDFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if slices.Contains(required, name) {
				missing = append(missing, name)
			}
		case err != nil:
			return nil, fmt.Errorf("read cluster keys: %w: %s", err, PutBack)
		default:
			files[name] = b
		}
	}
	if len(files) > 0 && len(missing) > 0 {
		sort.Strings(missing)
		return nil, fmt.Errorf("%s is missing while other keys of the cluster are there: %s", filepath.Join(dir, missing[0]), PutBack)
	}
	return files, nil
}

func isSealed(b []byte) bool {
	block, _ := pem.Decode(b)
	return block != nil && block.Type == sealedFile
}

// unsealFiles gives the plain content of all but the cluster key.
func unsealFiles(dir string, files map[string][]byte, key *seal.Key) (map[string][]byte, error) {
	out := map[string][]byte{}
	for name, b := range files {
		if name == seal.KeyFile || name == keyIDFile {
			continue
		}
		if block, _ := pem.Decode(b); block != nil && block.Type == sealedFile {
			if files[seal.KeyFile] == nil {
				return nil, fmt.Errorf("%s is missing, and %s is sealed with it: %s", filepath.Join(dir, seal.KeyFile), name, PutBack)
			}
			plain, err := key.Unwrap(name, block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %s", filepath.Join(dir, name), err, PutBack)
			}
			b = plain
		}
		out[name] = b
	}
	return out, nil
}

// sealFile gives a file's form on the disk.
func sealFile(name string, plain []byte, key *seal.Key, sealed bool) ([]byte, error) {
	if !private[name] || !sealed {
		return plain, nil
	}
	b, err := key.Wrap(name, plain)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealedFile, Bytes: b}), nil
}

// OnDisk gives the content of a directory for OpenProtected from plain files and
// the cluster key.
func OnDisk(plain map[string][]byte, key *seal.Key) (map[string][]byte, error) {
	out := map[string][]byte{seal.KeyFile: key.File(), keyIDFile: []byte(key.ID() + "\n")}
	for name, b := range plain {
		var err error
		if out[name], err = sealFile(name, b, key, key.Sealed() != nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// writeFiles makes dir appear with all files or not at all.
func writeFiles(dir string, files map[string][]byte) error {
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	for name, b := range files {
		if err := durable.Create(filepath.Join(tmp, name), b, 0o600); err != nil {
			return fmt.Errorf("write cluster keys: %w", err)
		}
	}
	if err := durable.SyncDir(tmp); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	// An empty directory may be left from an earlier attempt.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	return durable.SyncDir(filepath.Dir(dir))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	return durable.SyncDir(filepath.Dir(path))
}
