package ruleset

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Unit is a set of element changes that must become visible together, such as
// those of one service. Apply may put several units into one transaction and
// never cuts one.
type Unit struct {
	del, add map[string][]nftables.SetElement
	pickers  []Picker
	size     int
}

// Empty reports whether the unit changes nothing.
func (u *Unit) Empty() bool { return u.size == 0 }

// Size is the number of elements that the unit deletes and adds.
func (u *Unit) Size() int { return u.size }

func (u *Unit) put(m *map[string][]nftables.SetElement, set string, e nftables.SetElement) {
	if *m == nil {
		*m = map[string][]nftables.SetElement{}
	}
	(*m)[set] = append((*m)[set], e)
	u.size++
}

// SetFrontend replaces old by new in SetFrontends or SetExternal; nil means
// none. The comment says who owns the frontend.
func (u *Unit) SetFrontend(set string, k Key, old, new *Frontend, comment string) {
	if old != nil {
		u.put(&u.del, set, nftables.SetElement{Key: k.bytes()})
	}
	if new != nil {
		u.pickers = append(u.pickers, new.Picker)
		u.put(&u.add, set, nftables.SetElement{Key: k.bytes(), Val: new.bytes(), Comment: comment})
	}
}

// SetSlot replaces what one slot of a list holds; nil means nothing.
func (u *Unit) SetSlot(l ListID, slot int, old, new *Endpoint) {
	u.endpoint(SetEndpoints, slotBytes(l, slot), old, new)
}

// SetHostPort replaces where a host port leads; nil means nowhere.
func (u *Unit) SetHostPort(k Key, old, new *Endpoint) {
	u.endpoint(SetHostPorts, k.bytes(), old, new)
}

func (u *Unit) endpoint(set string, key []byte, old, new *Endpoint) {
	if old != nil {
		u.put(&u.del, set, nftables.SetElement{Key: key})
	}
	if new != nil {
		u.put(&u.add, set, nftables.SetElement{Key: key, Val: new.bytes()})
	}
}

// Member adds or removes an endpoint that affinity entries may point to.
func (u *Unit) Member(l ListID, e Endpoint, present bool) {
	u.flag(SetMembers, append(l.bytes(), e.bytes()...), present)
}

// Flag adds a key to SetReject, SetDrop or SetDropExternal, or removes it.
func (u *Unit) Flag(set string, k Key, present bool) { u.flag(set, k.bytes(), present) }

// Hairpin adds or removes a pod address of this node.
func (u *Unit) Hairpin(addr [4]byte, present bool) {
	u.flag(SetHairpin, append(addr[:], addr[:]...), present)
}

func (u *Unit) flag(set string, key []byte, present bool) {
	m := &u.del
	if present {
		m = &u.add
	}
	u.put(m, set, nftables.SetElement{Key: key})
}

// Limits of one transaction and of one message: a message's element list is one
// netlink attribute, whose length has 16 bits.
const (
	maxBatch   = 8000
	maxMessage = 250
)

// Apply makes the changes. Deletions of a transaction come before its
// additions, so an element can be replaced. After an error the kernel may hold
// some of the units: Load tells.
func (t *Table) Apply(units []*Unit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(units) > 0 {
		n, size := 0, 0
		for n < len(units) && (n == 0 || size+units[n].size <= maxBatch) {
			size += units[n].size
			n++
		}
		if err := t.transact(units[:n]); err != nil {
			return fmt.Errorf("change table %s: %w", t.name, err)
		}
		units = units[n:]
	}
	return nil
}

func (t *Table) transact(units []*Unit) error {
	var fresh []Picker
	for _, u := range units {
		for _, p := range u.pickers {
			if !t.pickers[p] && !slices.Contains(fresh, p) {
				fresh = append(fresh, p)
			}
		}
	}
	err := t.doLocked(func(conn *nftables.Conn) error {
		for _, p := range fresh {
			c := PickerChain(p, t.params.Mark)
			conn.AddChain(t.chain(c))
			conn.FlushChain(t.chain(c))
			t.addRules(conn, c)
			if err := conn.SetAddElements(t.sets[SetPickers], []nftables.SetElement{{
				Key: p.bytes(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}}); err != nil {
				return err
			}
		}
		for _, l := range layouts() {
			if err := t.send(units, func(u *Unit) []nftables.SetElement { return u.del[l.name] }, l.name, conn.SetDeleteElements); err != nil {
				return err
			}
		}
		for _, l := range layouts() {
			if err := t.send(units, func(u *Unit) []nftables.SetElement { return u.add[l.name] }, l.name, conn.SetAddElements); err != nil {
				return err
			}
		}
		return conn.Flush()
	})
	if err != nil {
		return err
	}
	for _, p := range fresh {
		t.pickers[p] = true
	}
	return nil
}

func (t *Table) send(units []*Unit, from func(*Unit) []nftables.SetElement, set string,
	op func(*nftables.Set, []nftables.SetElement) error) error {
	var all []nftables.SetElement
	for _, u := range units {
		all = append(all, from(u)...)
	}
	for chunk := range slices.Chunk(all, maxMessage) {
		// By name, not by the id of the transaction that made the set.
		s := *t.sets[set]
		s.ID = 0
		if err := op(&s, chunk); err != nil {
			return fmt.Errorf("encode elements of %s: %w", set, err)
		}
	}
	return nil
}
