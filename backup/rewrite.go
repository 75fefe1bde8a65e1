package backup

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// changes are what rewrite does to a snapshot.
type changes struct {
	hash   string            // what the source has, which was verified before
	header fsm.Header        // to write instead of the source's; its Revision is not below
	drop   func(string) bool // keys to leave out; may be nil
	put    map[string][]byte // keys to set, also those that drop knows; they get the header's revision
}

// rewrite copies a snapshot with changes. All keys get the header's revision:
// clients compare versions of an object by it, and may have seen a later one than
// the source has. A source that is no longer what was
// verified is an error, of which dst does not show everything: throw it away.
func rewrite(ctx context.Context, src io.Reader, size int64, dst io.Writer, c changes, progress Progress) error {
	r, err := fsm.NewReader(src)
	if err != nil {
		return err
	}
	c.header.Format = max(c.header.Format, r.Header().Format)
	w, err := fsm.NewWriter(dst, c.header)
	if err != nil {
		return err
	}
	put := slices.Sorted(maps.Keys(c.put))
	// add writes what is to be set before a key, "" being the end.
	add := func(before string) error {
		for len(put) > 0 && (before == "" || put[0] < before) {
			rev := c.header.Revision
			if err := w.Add(&store.KeyValue{Key: put[0], Value: c.put[put[0]], CreateRevision: rev, ModRevision: rev}); err != nil {
				return err
			}
			put = put[1:]
		}
		return nil
	}
	for last := int64(0); ; {
		kv, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := add(kv.Key); err != nil {
			return err
		}
		if _, ok := c.put[kv.Key]; ok {
			kv.Value, kv.Expires = c.put[kv.Key], 0
			put = put[1:]
		} else if c.drop != nil && c.drop(kv.Key) {
			continue
		}
		kv.ModRevision = c.header.Revision
		if err := w.Add(kv); err != nil {
			return err
		}
		if r.Offset() != last {
			last = r.Offset()
			progress.tell("restoring", last, size)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	if r.Summary().Hash != c.hash {
		return errors.New("the file was changed while it was read")
	}
	if err := add(""); err != nil {
		return err
	}
	progress.tell("restoring", size, size)
	return w.Close()
}
