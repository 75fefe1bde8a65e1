package store

// View is the store at one revision. It never changes, and keeping one keeps
// the memory of its versions.
type View struct {
	root   *node
	expiry *node // keyed by expiryKey
	rev    int64
	bytes  int64
}

// Revision is the revision the view was taken at.
func (v *View) Revision() int64 { return v.rev }

// Len is the number of keys.
func (v *View) Len() int { return v.root.size() }

// Bytes is the size of all keys and values.
func (v *View) Bytes() int64 { return v.bytes }

// Get returns the version of key in this view.
func (v *View) Get(key string) (*KeyValue, bool) {
	kv := v.root.get(key)
	return kv, kv != nil
}

// Ascend calls fn in key order for every key that has the prefix and is not
// less than from, until fn returns false. An empty from starts at the prefix.
func (v *View) Ascend(prefix, from string, fn func(*KeyValue) bool) {
	v.root.ascend(prefix, max(prefix, from), fn)
}

// Count is the number of keys with the prefix. It does not visit them.
func (v *View) Count(prefix string) int {
	return v.CountFrom(prefix, prefix)
}

// CountFrom is the number of keys with the prefix that are not less than from.
func (v *View) CountFrom(prefix, from string) int {
	end := v.root.size()
	if e := prefixEnd(prefix); e != "" {
		end = v.root.rank(e)
	}
	return max(0, end-v.root.rank(max(prefix, from)))
}

// prefixEnd is the first key after all those with the prefix; "" if there is
// none.
func prefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}
