package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/netproxy/netdump"
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
// no pod is left, and no lease matters. One that is damaged is begun anew, see
// recoverLeases.
type leases struct {
	path string

	Range netip.Prefix      `json:"range"`
	Pods  map[string]*lease `json:"pods"` // by UID
	Next  netip.Addr        `json:"next"` // the first never-used address
	Freed []netip.Addr      `json:"freed,omitempty"`
	Sum   string            `json:"sum,omitempty"` // SHA-256 of the others, in the file

	// found are the addresses of pods whose leases were lost, by the name of the
	// link: a pod gets its own back.
	found map[string]netip.Addr
}

// sum is the checksum of all but Sum.
func (l *leases) sum() (string, error) {
	c := *l
	c.Sum = ""
	b, err := json.Marshal(&c)
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:]), err
}

// errLeases says that the file is not as it was written.
var errLeases = errors.New("pod addresses are damaged")

func openLeases(dir string) (*leases, error) {
	l := &leases{path: filepath.Join(dir, "leases.json"), Pods: map[string]*lease{}}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil && !errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("read pod addresses: %w", err)
	}
	if err == nil {
		err = json.Unmarshal(b, l)
	}
	if err == nil && l.Sum != "" {
		var sum string
		if sum, err = l.sum(); err == nil && sum != l.Sum {
			err = errors.New("their checksum does not match")
		}
	}
	if err == nil && slices.ContainsFunc(slices.Collect(maps.Values(l.Pods)), func(le *lease) bool { return le == nil || !le.Addr.IsValid() }) {
		err = errors.New("a pod has no address")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errLeases, l.path, err)
	}
	if l.Pods == nil {
		l.Pods = map[string]*lease{}
	}
	return l, nil
}

func (l *leases) save() error {
	sum, err := l.sum()
	if err != nil {
		return fmt.Errorf("encode pod addresses: %w", err)
	}
	l.Sum = sum
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
	name := LinkName(uid)
	if a, ok := l.found[name]; ok {
		delete(l.found, name)
		l.Pods[uid] = &lease{Addr: a}
		return l.Pods[uid], nil
	}
	used := make(map[netip.Addr]bool, len(l.Pods))
	for _, a := range l.found {
		used[a] = true
	}
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

// recoverLeases begins anew when the file is damaged, and finds the addresses of
// the pods that run in the routes to their links.
func recoverLeases(h *netlink.Handle, dir string) (*leases, error) {
	path := filepath.Join(dir, "leases.json")
	if err := os.RemoveAll(path + ".damaged"); err != nil {
		return nil, fmt.Errorf("put damaged pod addresses aside: %w", err)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, fmt.Errorf("put damaged pod addresses aside: %w", err)
	}
	l, err := openLeases(dir)
	if err != nil {
		return nil, err
	}
	names, err := podLinks(h)
	if err != nil {
		return nil, err
	}
	l.found = map[string]netip.Addr{}
	for _, name := range names {
		link, err := h.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find link %s: %w", name, err)
		}
		routes, err := netdump.Whole(func() ([]netlink.Route, error) { return h.RouteList(link, unix.AF_INET) })
		if err != nil {
			return nil, fmt.Errorf("routes of link %s: %w", name, err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
				l.found[name] = a
			}
		}
	}
	return l, nil
}
