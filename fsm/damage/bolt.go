package damage

import (
	"fmt"
	"sort"
)

// boltWalk finds the pages of a bolt file. It trusts the file.
type boltWalk struct {
	b    []byte
	page int
	out  []place
	seen map[string]int // how often a kind of page was met
}

func boltPlaces(b []byte) []place {
	w := &boltWalk{b: b, page: int(le.Uint32(b[16+8:])), seen: map[string]int{}}
	best := 0
	for i := range 2 {
		at := i * w.page
		for _, f := range []struct {
			name string
			at   int
		}{{"page number", 0}, {"page flags", 8}, {"magic", 16}, {"version", 20}, {"page size", 24}, {"flags", 28}, {"root", 32}, {"sequence of the root", 40},
			{"free list", 48}, {"end", 56}, {"transaction", 64}, {"checksum", 72}, {"unused", 100}} {
			w.add(fmt.Sprintf("meta page %d, %s", i, f.name), at+f.at)
		}
		if le.Uint64(b[at+64:]) > le.Uint64(b[best+64:]) {
			best = at
		}
	}
	used := map[int]bool{0: true, 1: true}
	w.walk(int(le.Uint64(b[best+32:])), "root", used)
	for i := 2; i < len(b)/w.page; i++ { // one that nobody uses
		if !used[i] {
			w.add("free page", i*w.page+16)
			break
		}
	}
	sort.Slice(w.out, func(i, j int) bool { return w.out[i].at < w.out[j].at })
	return w.out
}

func (w *boltWalk) add(name string, at int) {
	if at < len(w.b) {
		w.out = append(w.out, place{name, at})
	}
}

const (
	boltHead    = 16
	boltBranch  = 1
	boltBucket  = 1
	enoughPages = 3
)

// walk notes the places of a page and of those below it.
func (w *boltWalk) walk(id int, bucket string, used map[int]bool) {
	at := id * w.page
	n := 1 + int(le.Uint32(w.b[at+12:]))
	for i := range n {
		used[id+i] = true
	}
	w.elements(at, n*w.page, bucket, used)
}

func (w *boltWalk) elements(at, size int, bucket string, used map[int]bool) {
	branch, count := le.Uint16(w.b[at+8:]) == boltBranch, int(le.Uint16(w.b[at+10:]))
	kind := "leaf"
	if branch {
		kind = "branch"
	}
	kind += " of " + bucket
	w.seen[kind]++
	note := w.seen[kind] <= enoughPages
	name := fmt.Sprintf("%s %d", kind, w.seen[kind])
	if note {
		w.add(name+", page number", at)
		w.add(name+", flags", at+8)
		w.add(name+", count", at+10)
		w.add(name+", overflow", at+12)
	}
	end := boltHead + 16*count // of keys and values
	for i := range count {
		e := at + boltHead + 16*i
		some := note && (i == 0 || i == count/2 || i == count-1)
		el := fmt.Sprintf("%s, element %d", name, i)
		if branch {
			pos, ks := int(le.Uint32(w.b[e:])), int(le.Uint32(w.b[e+4:]))
			if some {
				w.add(el+", position", e)
				w.add(el+", key size", e+4)
				w.add(el+", page", e+8)
				w.add(el+", key", e+pos+ks-1)
			}
			w.walk(int(le.Uint64(w.b[e+8:])), bucket, used)
			continue
		}
		flags, pos, ks, vs := le.Uint32(w.b[e:]), int(le.Uint32(w.b[e+4:])), int(le.Uint32(w.b[e+8:])), int(le.Uint32(w.b[e+12:]))
		value := e + pos + ks
		end = max(end, value+vs-at)
		if some || flags == boltBucket {
			w.add(el+", flags", e)
			w.add(el+", position", e+4)
			w.add(el+", key size", e+8)
			w.add(el+", value size", e+12)
			w.add(el+", key", e+pos)
			w.add(el+", end of the key", value-1)
			w.add(el+", begin of the value", value)
			w.add(el+", middle of the value", value+vs/2)
			w.add(el+", end of the value", value+vs-1)
		}
		if flags != boltBucket {
			continue
		}
		if root := int(le.Uint64(w.b[value:])); root != 0 {
			w.walk(root, string(w.b[e+pos:value]), used)
		} else {
			w.elements(value+16, vs-16, string(w.b[e+pos:value]), used)
		}
	}
	if note && end < size {
		w.add(name+", unused", at+end)
	}
}
