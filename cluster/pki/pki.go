// Package pki is the cluster's certificate authority and its service-account
// signing key, kept as files under <data-dir>/pki. The replicated state holds
// them too, sealed (package trust), so that a snapshot can bring up a bare host.
//
// Leaf certificates are never stored: each server issues what it needs and
// replaces it in place after two thirds of its life (see Leaf), so none can
// expire while the process runs, and a cluster that was off for years starts
// with fresh ones.
//
// Set changes the authorities of a running process: the next handshake of every
// TLS configuration made here trusts the new ones and shows certificates of the
// one that signs.
//
// Limits: one CA signs clients, servers and members; there is no list of revoked
// certificates.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/fsm/durable"
)

// PKI holds the keys. It is safe for concurrent use.
type PKI struct {
	dir   string
	key   *seal.Key
	now   atomic.Pointer[material]
	clock func() time.Time
	log   atomic.Pointer[slog.Logger]
	set   sync.Mutex // held by Set
	sets  int        // calls of Set that have succeeded; guarded by set

	writing func(name string) error // asked before each file is written, in tests
}

// material is what holds at one time. It is immutable.
type material struct {
	epoch     uint64 // grows when leaf certificates are to be issued anew
	usual     bool   // that they are issued anew for this epoch is nothing to tell
	leaves    uint64 // Keys.Leaves
	cas       []*x509.Certificate
	signer    *x509.Certificate
	signerKey *ecdsa.PrivateKey
	crossPEM  []byte
	bundle    []byte
	pool      *x509.CertPool
	saKey     *ecdsa.PrivateKey
	files     map[string][]byte // plain content
}

// CA is one authority, in PEM.
type CA struct {
	Cert []byte
	// Key signs; only that of the first of Keys.CAs is needed.
	Key []byte
	// Cross is the same authority signed by the one before it.
	Cross []byte
}

// Keys is what Set installs.
type Keys struct {
	// CAs are all trusted; the first signs.
	CAs []CA
	// SAKey signs service-account tokens, PEM. A running process goes on with the
	// one it was started with.
	SAKey []byte
	// Leaves is raised to have all leaf certificates issued anew.
	Leaves uint64
}

// Open reads the keys from dir, or creates all of them when dir holds none. A
// directory with only some of the files is refused: making new ones would cut
// off every member and client that trusts the old.
func Open(dir string) (*PKI, error) { return OpenProtected(dir, nil) }

// OpenProtected is Open for a cluster key under a passphrase. The other private
// keys in dir are then sealed with the cluster key; files that are still plain
// are sealed at once. A nil passphrase is none.
func OpenProtected(dir string, passphrase []byte) (*PKI, error) {
	files, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	p := &PKI{dir: dir, clock: time.Now}
	p.log.Store(slog.New(slog.DiscardHandler))
	if len(files) == 0 {
		return p, p.create(passphrase)
	}
	if p.key, err = openKey(dir, files, passphrase); err != nil {
		return nil, err
	}
	plain, err := unsealFiles(dir, files, p.key)
	if err != nil {
		return nil, err
	}
	m, err := parse(dir, plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, PutBack)
	}
	p.now.Store(m)
	return p, p.rewrite(files, plain)
}

// Install writes the files that a joining server was given (see Files) into dir,
// all or none; dir must not exist or be empty. With a passphrase they are sealed.
func Install(dir string, files map[string][]byte, passphrase []byte) error {
	key, err := seal.ParseKey(files[seal.KeyFile], nil)
	if err != nil {
		return fmt.Errorf("cluster key from the other server: %w", err)
	}
	if passphrase != nil {
		if key, err = key.WithPassphrase(passphrase); err != nil {
			return err
		}
	}
	plain := map[string][]byte{}
	for _, name := range append([]string{CrossFile}, required...) {
		if b := files[name]; len(b) > 0 {
			plain[name] = b
		}
	}
	if _, err := parse(dir, plain); err != nil {
		return fmt.Errorf("keys from the other server: %w", err)
	}
	out, err := OnDisk(plain, key)
	if err != nil {
		return err
	}
	return writeFiles(dir, out)
}

// ChangePassphrase puts the private keys in dir under another passphrase; nil is
// none. A crash in between leaves files that open with the new one.
func ChangePassphrase(dir string, current, next []byte) error {
	files, err := readFiles(dir)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s holds no keys of a cluster", dir)
	}
	p := &PKI{dir: dir}
	if p.key, err = openKey(dir, files, current); err != nil {
		return err
	}
	plain, err := unsealFiles(dir, files, p.key)
	if err != nil {
		return err
	}
	if p.key = p.key.Plain(); next != nil {
		if p.key, err = p.key.WithPassphrase(next); err != nil {
			return err
		}
	}
	return p.rewrite(files, plain)
}

func (p *PKI) create(passphrase []byte) (err error) {
	if p.key, err = seal.NewKey(passphrase); err != nil {
		return err
	}
	plain, err := createFiles(p.clock())
	if err != nil {
		return err
	}
	m, err := parse(p.dir, plain)
	if err != nil {
		return err
	}
	out, err := OnDisk(plain, p.key)
	if err != nil {
		return err
	}
	p.now.Store(m)
	return writeFiles(p.dir, out)
}

// openKey reads the cluster key; a cluster of a version that had none gets one.
func openKey(dir string, files map[string][]byte, passphrase []byte) (*seal.Key, error) {
	path := filepath.Join(dir, seal.KeyFile)
	id := strings.TrimSpace(string(files[keyIDFile]))
	if files[seal.KeyFile] == nil {
		if id != "" {
			return nil, fmt.Errorf("%s, the key %s, is missing: %s", path, id, PutBack)
		}
		return seal.NewKey(passphrase)
	}
	k, err := seal.ReadKey(path, passphrase)
	if errors.Is(err, seal.ErrDamaged) {
		return nil, fmt.Errorf("%w: %s", err, PutBack)
	}
	if err != nil {
		return nil, err
	}
	if id != "" && id != k.ID() {
		return nil, fmt.Errorf("%s is the key %s, but that of this cluster is %s, says %s beside it: %s", path, k.ID(), id, keyIDFile, PutBack)
	}
	if passphrase != nil && k.Sealed() == nil {
		return k.WithPassphrase(passphrase)
	}
	return k, nil
}

// rewrite brings the files into the form that the cluster key asks for.
func (p *PKI) rewrite(have, plain map[string][]byte) error {
	if !bytes.Equal(have[seal.KeyFile], p.key.File()) {
		if err := seal.WriteKey(filepath.Join(p.dir, seal.KeyFile), p.key); err != nil {
			return err
		}
	}
	if id := []byte(p.key.ID() + "\n"); !bytes.Equal(have[keyIDFile], id) {
		if err := durable.Replace(filepath.Join(p.dir, keyIDFile), id, 0o600); err != nil {
			return fmt.Errorf("write cluster keys: %w", err)
		}
	}
	for name, b := range have {
		if name == seal.KeyFile || name == keyIDFile || isSealed(b) == (private[name] && p.key.Sealed() != nil) {
			continue
		}
		if err := p.write(name, plain[name]); err != nil {
			return err
		}
	}
	return nil
}

// write replaces one file, sealed if need be.
func (p *PKI) write(name string, plain []byte) error {
	if p.writing != nil {
		if err := p.writing(name); err != nil {
			return err
		}
	}
	sealed, err := p.sealed()
	if err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	b, err := sealFile(name, plain, p.key, sealed)
	if err == nil {
		err = durable.Replace(filepath.Join(p.dir, name), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write cluster keys: %w", err)
	}
	return nil
}

// sealed says whether private keys are under a passphrase on the disk. That can
// have changed since this process began, by ChangePassphrase.
func (p *PKI) sealed() (bool, error) {
	if p.key.Sealed() != nil {
		return true, nil
	}
	b, err := os.ReadFile(filepath.Join(p.dir, seal.KeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return seal.IsSealed(b), err
}

// SetLogger says where renewals are reported; by default nowhere.
func (p *PKI) SetLogger(l *slog.Logger) { p.log.Store(l) }

// Set makes k hold, on disk and in this process. A crash in between leaves files
// that can be opened: the CA certificates are written before the key that
// belongs to one of them, and those that are no longer trusted are dropped last.
func (p *PKI) Set(k Keys) error {
	p.set.Lock()
	defer p.set.Unlock()
	old := p.now.Load()
	plain, err := k.files()
	if err != nil {
		return err
	}
	m, err := parse("the new keys", plain)
	if err != nil {
		return err
	}
	m.leaves, m.epoch, m.usual = k.Leaves, old.epoch, old.usual
	otherCA := !m.signer.Equal(old.signer) || !bytes.Equal(m.crossPEM, old.crossPEM)
	if otherCA || m.leaves != old.leaves {
		m.epoch++
		// A new process does not know what Leaves was before.
		m.usual = p.sets == 0 && !otherCA
	}
	union := bytes.Clone(plain[CACertFile])
	for _, c := range old.cas {
		if b := encodeCert(c.Raw); !bytes.Contains(union, b) {
			union = append(union, b...)
		}
	}
	steps := []struct {
		name    string
		content []byte
	}{{CACertFile, union}, {CrossFile, nil}, {CAKeyFile, plain[CAKeyFile]}, {SAKeyFile, plain[SAKeyFile]},
		{CrossFile, plain[CrossFile]}, {CACertFile, plain[CACertFile]}}
	have := maps.Clone(old.files)
	for _, s := range steps {
		if bytes.Equal(have[s.name], s.content) {
			continue
		}
		if s.name == CrossFile && s.content == nil {
			if err := removeFile(filepath.Join(p.dir, s.name)); err != nil {
				return err
			}
		} else if err := p.write(s.name, s.content); err != nil {
			return err
		}
		have[s.name] = s.content
	}
	p.sets++
	p.now.Store(m)
	return nil
}

func (k Keys) files() (map[string][]byte, error) {
	if len(k.CAs) == 0 {
		return nil, errors.New("set keys: no CA")
	}
	files := map[string][]byte{CAKeyFile: k.CAs[0].Key, SAKeyFile: k.SAKey}
	if len(k.CAs[0].Cross) > 0 {
		files[CrossFile] = k.CAs[0].Cross
	}
	for _, ca := range k.CAs {
		files[CACertFile] = append(files[CACertFile], ca.Cert...)
	}
	return files, nil
}

// Keys gives what Set would have to be told to come to the present state.
func (p *PKI) Keys() Keys {
	m := p.now.Load()
	k := Keys{SAKey: bytes.Clone(m.files[SAKeyFile]), Leaves: m.leaves,
		CAs: []CA{{Cert: encodeCert(m.signer.Raw), Key: bytes.Clone(m.files[CAKeyFile]), Cross: bytes.Clone(m.crossPEM)}}}
	for _, c := range m.cas {
		if !c.Equal(m.signer) {
			k.CAs = append(k.CAs, CA{Cert: encodeCert(c.Raw)})
		}
	}
	return k
}

// ClusterKey seals what is secret in the replicated state.
func (p *PKI) ClusterKey() *seal.Key { return p.key }

// CACertPEM is the certificate of the CA that signs.
func (p *PKI) CACertPEM() []byte { return encodeCert(p.now.Load().signer.Raw) }

// Bundle holds the certificates of all CAs that are trusted, PEM, the one that
// signs first: what clients and agents verify the cluster with.
func (p *PKI) Bundle() []byte { return bytes.Clone(p.now.Load().bundle) }

// CAs are the certificates of Bundle.
func (p *PKI) CAs() []*x509.Certificate { return p.now.Load().cas }

// Pool has the CAs that are trusted now as its roots. It must not be changed.
func (p *PKI) Pool() *x509.CertPool { return p.now.Load().pool }

// Trusts says whether c is one of the CAs that are trusted now.
func (p *PKI) Trusts(c *x509.Certificate) bool {
	for _, ca := range p.now.Load().cas {
		if ca.Equal(c) {
			return true
		}
	}
	return false
}

// ServiceAccountKey signs and verifies service-account tokens (ES256).
func (p *PKI) ServiceAccountKey() *ecdsa.PrivateKey { return p.now.Load().saKey }

// Files gives name -> content of everything that a new server needs, in plain
// form; see Install. The values are secrets.
func (p *PKI) Files() map[string][]byte {
	m := p.now.Load()
	out := make(map[string][]byte, len(m.files)+1)
	for k, v := range m.files {
		out[k] = bytes.Clone(v)
	}
	out[seal.KeyFile] = p.key.Encode()
	return out
}
