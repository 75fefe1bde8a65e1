package ruleset

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is skiff's table in the kernel. Its methods may be called from several
// goroutines; each is one or more atomic transactions.
type Table struct {
	name   string
	params Params
	log    *slog.Logger

	mu      sync.Mutex
	conn    *nftables.Conn // nil after an error: the next use opens another
	table   *nftables.Table
	sets    map[string]*nftables.Set
	pickers map[Picker]bool // chains known to be in the kernel
}

// New makes a Table. It does not touch the kernel.
func New(name string, params Params, log *slog.Logger) *Table {
	if params.Mark == 0 {
		params.Mark = DefaultMark
	}
	t := &Table{
		name: name, params: params, log: log,
		table:   &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4},
		sets:    map[string]*nftables.Set{},
		pickers: map[Picker]bool{},
	}
	for _, l := range layouts() {
		t.sets[l.name] = l.set(t.table)
	}
	return t
}

func (l layout) set(table *nftables.Table) *nftables.Set {
	s := &nftables.Set{Table: table, Name: l.name, KeyType: nftables.MustConcatSetType(l.key...), Concatenation: len(l.key) > 1}
	if l.data != nil {
		s.IsMap, s.DataType = true, nftables.MustConcatSetType(l.data...)
	}
	if l.verdict {
		s.IsMap, s.DataType = true, nftables.TypeVerdict
	}
	if l.affinity {
		s.Dynamic, s.HasTimeout, s.Size = true, true, affinityMax
	}
	return s
}

// Socket buffers. A transaction is sent as one message (about 100 bytes an
// element), else EMSGSIZE; its acknowledgements come at once, and the kernel
// loses what does not fit (ENOBUFS).
const (
	sendBuffer    = 8 << 20
	receiveBuffer = 4 << 20
)

// do runs fn with the connection. After an error the connection is closed: it
// may hold answers that nobody read.
func (t *Table) do(fn func(*nftables.Conn) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.doLocked(fn)
}

func (t *Table) doLocked(fn func(*nftables.Conn) error) error {
	if t.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			return errors.Join(c.SetReadBuffer(receiveBuffer), c.SetWriteBuffer(sendBuffer))
		}))
		if err != nil {
			return fmt.Errorf("open nftables connection: %w", err)
		}
		t.conn = c
	}
	if err := fn(t.conn); err != nil {
		_ = t.conn.CloseLasting()
		t.conn = nil
		return err
	}
	return nil
}

// Close ends the netlink connection and leaves the table in the kernel.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		return nil
	}
	c := t.conn
	t.conn = nil
	return c.CloseLasting()
}

// Ensure makes the table, its sets and its static rules what they should be
// and reports whether anything had to be changed. Elements are left alone, and
// rules are replaced only where they differ.
//
// When EnsureSets reports an upgrade, fill the sets first.
func (t *Table) Ensure() (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed, _, err = t.ensureSets()
	if err != nil {
		return changed, err
	}
	have, err := t.kernelChains()
	if err != nil {
		return changed, err
	}
	want := Chains(t.params)
	known := map[string]bool{}
	for _, c := range want {
		known[c.Name] = true
	}
	t.pickers = map[Picker]bool{}
	pickers, err := t.kernelPickers()
	if err != nil {
		return changed, err
	}
	for _, p := range pickers {
		c := PickerChain(p, t.params.Mark)
		if known[c.Name] = true; sameChain(c, have[c.Name]) {
			t.pickers[p] = true
		} else {
			want = append(want, c)
		}
	}

	err = t.doLocked(func(conn *nftables.Conn) error {
		n := 0
		// All chains first: rules of one jump to others.
		for _, c := range want {
			if _, ok := have[c.Name]; !ok {
				n++
				conn.AddChain(t.chain(c))
			}
		}
		for _, c := range want {
			if sameChain(c, have[c.Name]) {
				continue
			}
			n++
			if _, ok := have[c.Name]; ok {
				conn.FlushChain(t.chain(c))
			}
			t.addRules(conn, c)
		}
		// Chains of another version: no rule jumps to them any more.
		var stale []string
		for name := range have {
			if !known[name] {
				stale = append(stale, name)
			}
		}
		slices.Sort(stale)
		for _, name := range stale {
			n++
			conn.FlushChain(&nftables.Chain{Table: t.table, Name: name})
		}
		// Sets before chains: elements hold references to chains.
		if err := t.deleteStaleSets(conn); err != nil {
			return err
		}
		for _, name := range stale {
			conn.DelChain(&nftables.Chain{Table: t.table, Name: name})
		}
		changed = changed || n > 0
		return conn.Flush()
	})
	if err != nil {
		return changed, fmt.Errorf("write static rules of table %s: %w", t.name, err)
	}
	for _, p := range pickers {
		t.pickers[p] = true
	}
	return changed, nil
}

// EnsureSets makes the table and its sets. It reports an upgrade when there
// were sets of another layout, which rules of another version may still use.
func (t *Table) EnsureSets() (upgrade bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, upgrade, err = t.ensureSets()
	return upgrade, err
}

func (t *Table) ensureSets() (changed, upgrade bool, err error) {
	err = t.doLocked(func(conn *nftables.Conn) error {
		have := map[string]bool{}
		exists, err := t.exists(conn)
		if err != nil {
			return err
		}
		if exists {
			sets, err := conn.GetSets(t.table)
			if err != nil {
				return fmt.Errorf("list sets: %w", err)
			}
			for _, s := range sets {
				have[s.Name] = true
				upgrade = upgrade || t.sets[s.Name] == nil
			}
		} else {
			conn.AddTable(t.table)
		}
		for _, l := range layouts() {
			if have[l.name] {
				continue
			}
			changed = true
			if err := conn.AddSet(t.sets[l.name], nil); err != nil {
				return fmt.Errorf("add set %s: %w", l.name, err)
			}
		}
		return conn.Flush()
	})
	if err != nil {
		return changed, upgrade, fmt.Errorf("prepare table %s: %w", t.name, err)
	}
	return changed, upgrade, nil
}

func (t *Table) exists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.name }), nil
}

// deleteStaleSets deletes sets of other versions of skiff.
func (t *Table) deleteStaleSets(conn *nftables.Conn) error {
	sets, err := conn.GetSets(t.table)
	if err != nil {
		return fmt.Errorf("list sets of table %s: %w", t.name, err)
	}
	for _, s := range sets {
		if t.sets[s.Name] == nil {
			conn.DelSet(s)
		}
	}
	return nil
}

// kernelChains returns the fingerprints of the rules of each chain.
func (t *Table) kernelChains() (map[string][]string, error) {
	have := map[string][]string{}
	err := t.doLocked(func(conn *nftables.Conn) error {
		chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name != t.name {
				continue
			}
			rules, err := conn.GetRules(t.table, c)
			if err != nil {
				return fmt.Errorf("list rules of chain %s: %w", c.Name, err)
			}
			prints := []string{}
			for _, r := range rules {
				prints = append(prints, string(r.UserData))
			}
			have[c.Name] = prints
		}
		return nil
	})
	return have, err
}

func sameChain(want Chain, have []string) bool {
	if have == nil || len(have) != len(want.Rules) {
		return false
	}
	for i := range want.Rules {
		if have[i] != want.fingerprint(i) {
			return false
		}
	}
	return true
}

// fingerprint identifies rule i of the chain. It is kept as the rule's user
// data, in the form of a comment.
func (c Chain) fingerprint(i int) string {
	one := Chain{Name: c.Name, Type: c.Type, Hook: c.Hook, Priority: c.Priority, Rules: c.Rules[i : i+1]}
	sum := sha256.Sum256(fmt.Appendf(nil, "1 %s", Format([]Chain{one})))
	text := fmt.Sprintf("%x", sum[:6])
	// struct nftnl_udata: type (0: comment), length, text with its NUL
	return string(append([]byte{0, byte(len(text) + 1)}, text+"\x00"...))
}

func (t *Table) chain(c Chain) *nftables.Chain {
	nc := &nftables.Chain{Table: t.table, Name: c.Name}
	if c.Type != "" {
		nc.Type, nc.Hooknum = c.Type, c.Hook
		nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	}
	return nc
}

func (t *Table) addRules(conn *nftables.Conn, c Chain) {
	for i, r := range c.Rules {
		conn.AddRule(&nftables.Rule{Table: t.table, Chain: &nftables.Chain{Table: t.table, Name: c.Name},
			Exprs: r.Exprs, UserData: []byte(c.fingerprint(i))})
	}
}

// Remove deletes the table with all that is in it. A missing table is no error.
func Remove(name string) error {
	t := New(name, Params{}, slog.New(slog.DiscardHandler))
	defer t.Close()
	return t.do(func(conn *nftables.Conn) error {
		exists, err := t.exists(conn)
		if err != nil || !exists {
			return err
		}
		conn.DelTable(t.table)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete table %s: %w", name, err)
		}
		return nil
	})
}
