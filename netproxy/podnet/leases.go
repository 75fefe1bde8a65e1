package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// errNoAddress means that every address of the node's range is in use.
var errNoAddress = errors.New("no free pod address")

// lease is what one pod holds.
type lease struct {
	Addr  netip.Addr    `json:"addr"`
	Ports []PortMapping `json:"hostPorts,omitempty"`

	inTable bool // the address is in the hairpin set
}

// leases hands out the addresses of the node's range. An address that was
// freed is used again only after all never-used ones, and the oldest first: a
// client that still knows it should not reach another pod.
//
// The file is replaced atomically but not synced: after a crash of the machine
// no pod is left, and no lease matters.
type leases struct {
	path string

	Range netip.Prefix      `json:"range"`
	Pods  map[string]*lease `json:"pods"` // by UID
	Next  netip.Addr        `json:"next"` // the first never-used address
	Freed []netip.Addr      `json:"freed,omitempty"`
}

func openLeases(dir string) (*leases, error) {
	l := &leases{path: filepath.Join(dir, "leases.json"), Pods: map[string]*lease{}}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod addresses: %w", err)
	}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("pod addresses in %s: %w", l.path, err)
	}
	if l.Pods == nil {
		l.Pods = map[string]*lease{}
	}
	return l, nil
}

func (l *leases) save() error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode pod addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return fmt.Errorf("save pod addresses: %w", err)
	}
	tmp := l.path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("save pod addresses: %w", err)
	}
	if err := os.Rename(tmp, l.path); err != nil {
		return fmt.Errorf("save pod addresses: %w", err)
	}
	return nil
}

// setRange changes where new addresses come from. Pods keep theirs.
func (l *leases) setRange(p netip.Prefix) {
	if l.Range == p.Masked() {
		return
	}
	l.Range, l.Freed = p.Masked(), nil
	// The first address is the tunnel's, the second is kept for the node.
	l.Next = l.Range.Addr().Next().Next()
}

// take returns the pod's lease, a new one if it has none.
func (l *leases) take(uid string) (*lease, error) {
	if le := l.Pods[uid]; le != nil {
		return le, nil
	}
	used := make(map[netip.Addr]bool, len(l.Pods))
	for _, le := range l.Pods {
		used[le.Addr] = true
	}
	for ; l.Range.Contains(l.Next); l.Next = l.Next.Next() {
		last := !l.Range.Contains(l.Next.Next()) // the broadcast address
		if !last && !used[l.Next] {
			le := &lease{Addr: l.Next}
			l.Pods[uid] = le
			l.Next = l.Next.Next()
			return le, nil
		}
	}
	for i, a := range l.Freed {
		if !used[a] {
			l.Freed = slices.Delete(l.Freed, 0, i+1)
			le := &lease{Addr: a}
			l.Pods[uid] = le
			return le, nil
		}
	}
	return nil, fmt.Errorf("%w in %s: %d pods", errNoAddress, l.Range, len(l.Pods))
}

// release frees the pod's address.
func (l *leases) release(uid string) {
	le := l.Pods[uid]
	if le == nil {
		return
	}
	delete(l.Pods, uid)
	if l.Range.Contains(le.Addr) {
		l.Freed = append(l.Freed, le.Addr)
	}
}
