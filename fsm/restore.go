package fsm

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/store"
)

// Restore replaces the state by that of a snapshot file, in one step that has its
// place in the log like every other change. The log only names the file: members
// have it before the command is proposed, or get it from others (FileSource).
//
// It is alone in its entry. The revision moves on to one above the present one
// and not below the file's. Keys whose value is the same before and after stay as
// they are; all others have the new revision, see store.Txn.Reset.
type Restore struct {
	File string // Summary.Hash of the snapshot: SHA-256 in hex
	Size int64  // bytes of the file
	// Keep are prefixes whose keys stay as they are, but for those with a prefix of
	// Except: these come from the file like all others.
	Keep, Except []string
	// Expect are keys with the ModRevision that they must have before, 0: none.
	// If one has another, nothing is done, and Result.Err is store.ErrConflict.
	Expect []Expectation
	// Ops are puts without condition, done after it.
	Ops []Op
}

// Expectation is the ModRevision that a key must have; 0: there must be no key.
type Expectation struct {
	Key         string
	ModRevision int64
}

// FileSource opens a file that a Restore names. It may take as long as it takes to
// get it from another member. wrong is nil, or why the file that it opened before
// can't be it: it has to be another copy. An error means that this member is about
// to stop: the state machine applies nothing any more.
type FileSource func(file string, size int64, wrong error) (io.ReadCloser, error)

func (r *Restore) validate() error {
	if b, err := hex.DecodeString(r.File); err != nil || len(b) != 32 || strings.ToLower(r.File) != r.File {
		return fmt.Errorf("file %q is no SHA-256 in hex", r.File)
	}
	if r.Size < 1 {
		return fmt.Errorf("file of %d bytes", r.Size)
	}
	for _, e := range r.Expect {
		if e.Key == "" || e.ModRevision < 0 {
			return fmt.Errorf("expectation of %q at %d", e.Key, e.ModRevision)
		}
	}
	for i := range r.Ops {
		if o := &r.Ops[i]; o.Type != Put || o.Expect != Any {
			return fmt.Errorf("operation %d is no put without condition", i)
		} else if err := o.validate(); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return nil
}

func (r *Restore) keeps(key string) bool {
	in := func(prefixes []string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
	}
	return in(r.Keep) && !in(r.Except)
}

// Fields of a restore. Fields that repeat have one number each time.
const (
	restoreFile   = 1
	restoreSize   = 2 // uvarint
	restoreKeep   = 3
	restoreExcept = 4
	restoreExpect = 5 // uvarint revision, key
	restoreOp     = 6 // a put command
)

func appendRestore(dst []byte, r *Restore) []byte {
	field := func(n uint64, b []byte) { dst = appendFrame(dst, n, b) }
	field(restoreFile, []byte(r.File))
	field(restoreSize, binary.AppendUvarint(nil, uint64(r.Size)))
	for _, p := range r.Keep {
		field(restoreKeep, []byte(p))
	}
	for _, p := range r.Except {
		field(restoreExcept, []byte(p))
	}
	for _, e := range r.Expect {
		field(restoreExpect, append(binary.AppendUvarint(nil, uint64(e.ModRevision)), e.Key...))
	}
	for i := range r.Ops {
		field(restoreOp, appendOp(nil, &r.Ops[i]))
	}
	return dst
}

func decodeRestore(body []byte) (Command, error) {
	r := &Restore{}
	d := decoder{b: body}
	for len(d.b) > 0 {
		n, v := d.frame()
		f := decoder{b: v, err: d.err}
		switch n {
		case restoreFile:
			r.File = string(v)
		case restoreSize:
			r.Size = f.int63()
		case restoreKeep:
			r.Keep = append(r.Keep, string(v))
		case restoreExcept:
			r.Except = append(r.Except, string(v))
		case restoreExpect:
			e := Expectation{ModRevision: f.int63()}
			e.Key = string(f.b)
			r.Expect = append(r.Expect, e)
		case restoreOp:
			typ, b := f.frame()
			op, err := decodeOp(typ, b)
			if err != nil && f.err == nil {
				f.err = err
			}
			r.Ops = append(r.Ops, op)
		default:
			if d.err == nil {
				return Command{}, fmt.Errorf("restore: %w: field %d", ErrUnknownCommand, n)
			}
		}
		if f.err != nil {
			return Command{}, fmt.Errorf("restore: %w", f.err)
		}
	}
	if err := r.validate(); err != nil {
		return Command{}, fmt.Errorf("restore: %w", err)
	}
	return Command{Restore: r}, nil
}

// RestoreIn returns the Restore that an entry consists of, or an encoded command
// (without the entry's header) is; nil if it is something else.
func RestoreIn(entry []byte) *Restore {
	if len(entry) < 2 || entry[0] != entryVersion || entry[1] != typeRestore {
		return nil
	}
	cmds, err := DecodeEntry(entry)
	if err != nil || len(cmds) != 1 {
		return nil
	}
	return cmds[0].Restore
}

// IsRestore says whether an encoded command is a Restore: it has to be proposed in
// an entry of its own.
func IsRestore(cmd []byte) bool { return len(cmd) > 0 && cmd[0] == typeRestore }

// content is the state that a restore is to bring.
type content struct {
	file string
	load *store.Loader
	rev  int64
}

// SetFiles says where the files of restores are. It is called before anything is
// applied, or never: then a Restore in the log is a panic.
func (f *FSM) SetFiles(s FileSource) { f.files = s }

// Halted is why nothing is applied any more, see FileSource; else nil.
func (f *FSM) Halted() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.halted
}

// Preload reads the file of a Restore that will come, so that it then takes no
// time; the file is verified. Forget gives the memory back if it does not come.
func (f *FSM) Preload(src io.Reader) (*Summary, error) {
	c, s, err := f.readContent(src)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	f.loaded.Store(c)
	return s, nil
}

// Forget drops what Preload has read of a file, if it was not used.
func (f *FSM) Forget(file string) {
	if c := f.loaded.Load(); c != nil && c.file == file {
		f.loaded.CompareAndSwap(c, nil)
	}
}

// Preloaded says whether Preload has read the file and it was not used yet.
func (f *FSM) Preloaded(file string) bool {
	c := f.loaded.Load()
	return c != nil && c.file == file
}

func (f *FSM) readContent(src io.Reader) (*content, *Summary, error) {
	r, err := NewReader(src)
	if err != nil {
		return nil, nil, err
	}
	c := &content{load: f.store.NewLoader()}
	for {
		kv, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		c.load.Add(kv)
	}
	s := r.Summary()
	c.file, c.rev = s.Hash, s.Revision
	return c, s, nil
}

// contentFor gets what a restore needs. It is called without f.mu, which readers
// need meanwhile.
func (f *FSM) contentFor(l *raft.Log, r *Restore) (*content, error) {
	if c := f.loaded.Load(); c != nil && c.file == r.File && f.loaded.CompareAndSwap(c, nil) {
		return c, nil
	}
	if f.files == nil {
		panic(fmt.Errorf("fsm: log entry %d of term %d restores the file %s, and there is no place to look for it", l.Index, l.Term, r.File))
	}
	for wrong := error(nil); ; {
		src, err := f.files(r.File, r.Size, wrong)
		if err != nil {
			return nil, err
		}
		c, _, err := f.readContent(src)
		src.Close()
		if err == nil && c.file == r.File {
			return c, nil
		}
		if wrong = err; err == nil {
			wrong = fmt.Errorf("%w: it is %s", ErrDamaged, c.file)
		}
	}
}

// restore carries out a Restore whose content was got before.
func (f *FSM) restore(tx *store.Txn, r *Restore, c *content) Result {
	for i, e := range r.Expect {
		have := int64(0)
		kv, ok := tx.Get(e.Key)
		if ok {
			have = kv.ModRevision
		}
		if have != e.ModRevision {
			return Result{Revision: tx.Revision(), Err: store.ErrConflict, Op: i, Current: kv}
		}
	}
	tx.Reset(c.load, c.rev, r.keeps)
	var out Result
	for i := range r.Ops {
		out.Current, _ = doOp(tx, &r.Ops[i]) // without a condition nothing can be wrong
	}
	out.Revision = tx.Revision()
	return out
}
