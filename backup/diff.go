package backup

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// DiffOptions for Diff.
type DiffOptions struct {
	// Details decodes what differs: without it Change has no UIDs and no Fields.
	Details bool
	// OpenA and OpenB open what is sealed in each. Where one is missing, sealed
	// objects are compared as they are stored, see Change.Sealed.
	OpenA, OpenB OpenSealed
	// Tell is called now and then while reading; may be nil.
	Tell func()
}

// Difference is what changed from snapshot A to snapshot B, ordered by resource,
// namespace and name.
type Difference struct {
	A       *Info    `json:"a"`
	B       *Info    `json:"b"`
	Added   []Change `json:"added"`
	Changed []Change `json:"changed"`
	Removed []Change `json:"removed"`
	// Same is the number of objects that are in both and do not differ.
	Same int `json:"same"`
	// Own says of keys that are skiff's own whether they were "added", "changed" or
	// "removed".
	Own map[string]string `json:"own"`
}

// Change is an object that is not the same in two snapshots.
type Change struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"` // "" if its stored form is not known to this version
	Resource   string `json:"resource"`       // such as pods, widgets.example.com
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	// Of A and of B; 0 and "" where it is not there.
	RevisionA int64  `json:"revisionA,omitempty"`
	RevisionB int64  `json:"revisionB,omitempty"`
	UIDA      string `json:"uidA,omitempty"`
	UIDB      string `json:"uidB,omitempty"`
	// Fields are the paths of what differs, such as spec.containers[web].image.
	Fields []string `json:"fields,omitempty"`
	// Sealed says that it could not be opened: if it is in both, it may be the same
	// under another seal.
	Sealed bool `json:"sealed,omitempty"`
}

// Replaced says that another object has the name now. It needs Details.
func (c Change) Replaced() bool { return c.UIDA != "" && c.UIDB != "" && c.UIDA != c.UIDB }

// Compare orders by resource, namespace and name.
func (c Change) Compare(o Change) int {
	return cmp.Or(cmp.Compare(c.Resource, o.Resource), cmp.Compare(c.Namespace, o.Namespace), cmp.Compare(c.Name, o.Name))
}

// Diff compares two plain snapshots (a File is one). It holds in memory only
// what differs. Both are verified as a whole before anything is returned; the
// sizes in Difference are of what was read.
func Diff(ctx context.Context, a, b io.Reader, o DiffOptions) (*Difference, error) {
	d := &differ{o: o, out: &Difference{Own: map[string]string{}}, ownA: map[string][]byte{}, ownB: map[string][]byte{}}
	ra, err := fsm.NewReader(a)
	if err != nil {
		return nil, fmt.Errorf("snapshot A: %w", err)
	}
	rb, err := fsm.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("snapshot B: %w", err)
	}
	ka, errA := next(ra)
	kb, errB := next(rb)
	for n := 0; ; n++ {
		switch {
		case errA != nil:
			return nil, fmt.Errorf("snapshot A: %w", errA)
		case errB != nil:
			return nil, fmt.Errorf("snapshot B: %w", errB)
		case ka == nil && kb == nil:
			return d.finish(ra.Summary(), rb.Summary())
		case kb == nil || ka != nil && ka.Key < kb.Key:
			d.key(ka, nil)
			ka, errA = next(ra)
		case ka == nil || kb.Key < ka.Key:
			d.key(nil, kb)
			kb, errB = next(rb)
		default:
			d.key(ka, kb)
			ka, errA = next(ra)
			kb, errB = next(rb)
		}
		if n%1024 == 0 {
			if o.Tell != nil {
				o.Tell()
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
	}
}

// next gives nil at the end.
func next(r *fsm.Reader) (*store.KeyValue, error) {
	kv, err := r.Next()
	if err == io.EOF {
		return nil, nil
	}
	return kv, err
}

type differ struct {
	o          DiffOptions
	out        *Difference
	ownA, ownB map[string][]byte
	// later are sealed ones: the keys that open them come after them.
	later []pair
}

// pair is the same key in A and in B; nil where it is not.
type pair struct{ a, b *store.KeyValue }

func (p pair) key() string {
	if p.a != nil {
		return p.a.Key
	}
	return p.b.Key
}

// key takes up one key.
func (d *differ) key(a, b *store.KeyValue) {
	p := pair{a, b}
	same := a != nil && b != nil && bytes.Equal(a.Value, b.Value)
	if !strings.HasPrefix(p.key(), objectPrefix) {
		d.own(p, same)
		return
	}
	switch {
	case same:
		d.out.Same++
	case a != nil && sealed(a.Value) || b != nil && sealed(b.Value):
		d.later = append(d.later, p)
	default:
		d.add(p, false)
	}
}

func (d *differ) own(p pair, same bool) {
	if p.a != nil {
		d.ownA[p.a.Key] = p.a.Value
	}
	if p.b != nil {
		d.ownB[p.b.Key] = p.b.Value
	}
	switch {
	case same:
	case p.a == nil:
		d.out.Own[p.b.Key] = "added"
	case p.b == nil:
		d.out.Own[p.a.Key] = "removed"
	default:
		d.out.Own[p.a.Key] = "changed"
	}
}

func (d *differ) finish(a, b *fsm.Summary) (_ *Difference, err error) {
	if d.out.A, err = infoOf(a, d.ownA); err != nil {
		return nil, fmt.Errorf("snapshot A: %w", err)
	}
	if d.out.B, err = infoOf(b, d.ownB); err != nil {
		return nil, fmt.Errorf("snapshot B: %w", err)
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d.out, nil
}

// open opens what is sealed, and sorts.
func (d *differ) open() error {
	openA, err := openerOf(d.o.OpenA, d.ownA)
	if err != nil {
		return fmt.Errorf("snapshot A: %w", err)
	}
	openB, err := openerOf(d.o.OpenB, d.ownB)
	if err != nil {
		return fmt.Errorf("snapshot B: %w", err)
	}
	for _, p := range d.later {
		a, okA, err := openKey(openA, p.a)
		if err != nil {
			return fmt.Errorf("snapshot A: %w", err)
		}
		b, okB, err := openKey(openB, p.b)
		if err != nil {
			return fmt.Errorf("snapshot B: %w", err)
		}
		if a != nil && b != nil && bytes.Equal(a.Value, b.Value) {
			d.out.Same++
			continue
		}
		d.add(pair{a, b}, !okA || !okB)
	}
	for _, list := range [][]Change{d.out.Added, d.out.Changed, d.out.Removed} {
		slices.SortStableFunc(list, Change.Compare)
	}
	return nil
}

func openerOf(open OpenSealed, own map[string][]byte) (OpenValue, error) {
	if open == nil {
		return nil, nil
	}
	return open(own)
}

// openKey gives the plain form, or false and the key as it is if it can't be
// opened.
func openKey(open OpenValue, kv *store.KeyValue) (*store.KeyValue, bool, error) {
	if kv == nil || !sealed(kv.Value) {
		return kv, true, nil
	}
	if open == nil {
		return kv, false, nil
	}
	plain, err := open(kv.Key, kv.Value)
	if err != nil {
		return nil, false, err
	}
	return &store.KeyValue{Key: kv.Key, Value: plain, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Expires: kv.Expires}, true, nil
}

// add records a difference.
func (d *differ) add(p pair, closed bool) {
	c := Change{Sealed: closed}
	c.Resource, c.Namespace, c.Name = splitKey(p.key())
	var a, b *unstructured.Unstructured
	if p.a != nil {
		c.RevisionA = p.a.ModRevision
		a = d.look(&c, &c.UIDA, p.a)
	}
	if p.b != nil {
		c.RevisionB = p.b.ModRevision
		b = d.look(&c, &c.UIDB, p.b)
	}
	switch {
	case p.a == nil:
		d.out.Added = append(d.out.Added, c)
	case p.b == nil:
		d.out.Removed = append(d.out.Removed, c)
	default:
		if a != nil && b != nil {
			c.Fields = changedFields(a.Object, b.Object)
		}
		d.out.Changed = append(d.out.Changed, c)
	}
}

// look notes the kind and the UID. What can't be read is no reason to hide that
// it differs.
func (d *differ) look(c *Change, uid *string, kv *store.KeyValue) *unstructured.Unstructured {
	if gvk, err := typeOf(kv.Key, kv.Value); err == nil {
		c.APIVersion, c.Kind = gvk.ToAPIVersionAndKind()
	}
	if !d.o.Details || sealed(kv.Value) {
		return nil
	}
	obj, err := decodeObject(kv.Key, kv.Value)
	if err != nil {
		return nil
	}
	*uid = string(obj.GetUID())
	return obj
}
