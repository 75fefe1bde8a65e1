package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/skiff-sh/skiff/fsm"
)

// A snapshot file may be compressed (zstd), and then encrypted (age). What it is
// is told by its first bytes, never by its name.
const (
	ageMagic  = "age-encryption.org/v1\n"
	zstdMagic = "\x28\xb5\x2f\xfd"

	// SuffixPlain, SuffixCompressed and SuffixEncrypted end the names of files
	// that skiff names itself, in this order.
	SuffixPlain      = ".snap"
	SuffixCompressed = ".zst"
	SuffixEncrypted  = ".age"
)

// maxWindow bounds the memory that opening a foreign file can take.
const maxWindow = 128 << 20

// File is a snapshot file that is open for reading. Read gives the plain
// snapshot, whose checks are fsm.Reader's.
type File struct {
	Size       int64 // of the file, as it is on the disk
	Encrypted  bool
	Compressed bool

	file   *os.File
	unlock Unlock
	plain  io.ReadCloser
	count  *medium
}

// Open opens a snapshot file, whatever it is wrapped in. Its errors are
// ErrEncrypted, ErrWrongKey, fsm.ErrNotSnapshot if it is no regular file,
// fsm.ErrTruncated, fsm.ErrDamaged, or those of the operating system, which alone
// name the file. What else is wrong is found by reading.
func Open(path string, unlock Unlock) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f := &File{file: file, unlock: unlock}
	st, err := file.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%w: it is no regular file", fsm.ErrNotSnapshot)
	default:
		f.Size = st.Size()
		err = f.Rewind()
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return f, nil
}

// Rewind begins again at the first byte.
func (f *File) Rewind() (err error) {
	if f.plain != nil {
		f.plain.Close() // it may read ahead
	}
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f.count = &medium{r: f.file}
	f.plain, f.Encrypted, f.Compressed, err = unwrap(f.count, f.unlock)
	return err
}

func (f *File) Read(p []byte) (int, error) { return f.plain.Read(p) }

// Offset is how many bytes of the file have been read; Size in the end.
func (f *File) Offset() int64 { return f.count.n.Load() }

// progress shows how far the file is read, whatever size its content has.
func (f *File) progress(p Progress) Progress {
	return func(s Step) { p.tell(s.What, f.Offset(), f.Size) }
}

// Close is not safe while a Read is under way.
func (f *File) Close() error {
	if f.plain != nil {
		f.plain.Close()
	}
	return f.file.Close()
}

// NewReader gives the plain snapshot in src, such as the body of a download.
// Closing it does not close src.
func NewReader(src io.Reader, unlock Unlock) (io.ReadCloser, error) {
	r, _, _, err := unwrap(&medium{r: src}, unlock)
	return r, err
}

// medium counts, and remembers an error of the medium, which is no damage of
// the content.
type medium struct {
	r   io.Reader
	n   atomic.Int64 // a decompressor reads ahead in another goroutine
	err error
}

func (s *medium) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n.Add(int64(n))
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// explain says of an error of the layers between the medium and the reader what
// it means for the file.
func (s *medium) explain(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case s.err != nil:
		return s.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the file ends too early", fsm.ErrTruncated)
	}
	return fmt.Errorf("%w: before byte %d of the file: %w", fsm.ErrDamaged, s.n.Load(), err)
}

func unwrap(s *medium, unlock Unlock) (_ io.ReadCloser, encrypted, compressed bool, err error) {
	buf := bufio.NewReaderSize(s, 256<<10)
	if encrypted, err = startsWith(buf, ageMagic); err != nil {
		return nil, false, false, err
	}
	if encrypted {
		if len(unlock) == 0 {
			return nil, true, false, ErrEncrypted
		}
		r, err := age.Decrypt(buf, unlock...)
		if err != nil {
			var other *age.NoIdentityMatchError
			if errors.As(err, &other) {
				return nil, true, false, ErrWrongKey
			}
			// The header is text, so a cut or a flipped bit shows as one of many errors.
			return nil, true, false, s.explain(fmt.Errorf("header of the encryption: %w", err))
		}
		buf = bufio.NewReaderSize(r, 64<<10)
	}
	if compressed, err = startsWith(buf, zstdMagic); err != nil {
		return nil, encrypted, false, s.explain(err)
	}
	if !compressed {
		return &layer{Reader: buf, s: s}, encrypted, false, nil
	}
	z, err := zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, encrypted, true, s.explain(err)
	}
	return &layer{Reader: z, s: s, z: z}, encrypted, true, nil
}

func startsWith(r *bufio.Reader, magic string) (bool, error) {
	b, err := r.Peek(len(magic))
	if err != nil && err != io.EOF {
		return false, err
	}
	return string(b) == magic, nil
}

type layer struct {
	io.Reader
	s *medium
	z *zstd.Decoder
}

func (l *layer) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	return n, l.s.explain(err)
}

func (l *layer) Close() error {
	if l.z != nil {
		l.z.Close()
	}
	return nil
}

// wrap gives a writer of plain snapshots into w. Its Close finishes what is
// written and does not close w.
func wrap(w io.Writer, compress bool, to []age.Recipient) (io.WriteCloser, error) {
	out := &wrapped{w: w}
	if len(to) > 0 {
		a, err := age.Encrypt(w, to...)
		if err != nil {
			return nil, fmt.Errorf("encrypt: %w", err)
		}
		out.w, out.close = a, append(out.close, a)
	}
	if compress {
		// One block in flight and a small window: a server does this beside its work,
		// and objects repeat what is near them.
		z, err := zstd.NewWriter(out.w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err != nil {
			return nil, fmt.Errorf("compress: %w", err)
		}
		out.w, out.close = z, append(out.close, z)
	}
	return out, nil
}

type wrapped struct {
	w     io.Writer
	close []io.Closer // the innermost last
}

func (w *wrapped) Write(p []byte) (int, error) { return w.w.Write(p) }

func (w *wrapped) Close() error {
	for i := len(w.close) - 1; i >= 0; i-- {
		if err := w.close[i].Close(); err != nil {
			return err
		}
	}
	return nil
}

// Locks says what an encrypted file tells without a key: for whom it is, such as
// "a passphrase" or "2 keys".
func Locks(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	header, err := age.ExtractHeader(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w: header of the encryption: %w", path, fsm.ErrDamaged, err)
	}
	keys := 0
	for line := range bytes.Lines(header) {
		switch kind, _, _ := strings.Cut(strings.TrimPrefix(string(line), "-> "), " "); {
		case !bytes.HasPrefix(line, []byte("-> ")):
		case kind == "scrypt":
			return "a passphrase", nil
		default:
			keys++
		}
	}
	if keys == 1 {
		return "1 key", nil
	}
	return fmt.Sprint(keys, " keys"), nil
}
