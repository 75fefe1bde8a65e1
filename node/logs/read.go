// Package logs reads and rotates the log files that a pod's shim writes, in
// the format of the container runtime interface: a time, the stream, F for a
// full or P for a part of a line, and the text.
//
// A reader sees the newest file of an attempt; a follower goes on into the
// file that a rotation begins. Nothing is polled: inotify says when there is
// more.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say which part of a log is wanted; the zero value means all of it.
type Options struct {
	Follow     bool
	Timestamps bool
	Tail       *int64    // last lines only
	Limit      *int64    // bytes of output at most
	Since      time.Time // not older
}

var errLimit = errors.New("limit reached")

// Read writes the log at path to stdout and stderr (which may be the same
// writer; nil drops a stream). With Follow it goes on until ctx ends or, after
// ended is closed, the file has been read to its end. No file is no output.
func Read(ctx context.Context, path string, o Options, stdout, stderr io.Writer, ended <-chan struct{}) error {
	f, err := openNewest(path)
	if err != nil && !(o.Follow && errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("failed to try resolving symlinks in path %q: %w", path, err)
	}
	var w *fsnotify.Watcher
	if o.Follow {
		if w, err = fsnotify.NewWatcher(); err != nil {
			return fmt.Errorf("watching the log: %w", err)
		}
		defer w.Close()
		if err := w.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("watching the log: %w", err)
		}
		if f == nil {
			f, _ = os.Open(path)
		}
	}
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	p := &printer{o: o, out: map[string]io.Writer{"stdout": stdout, "stderr": stderr}, fresh: map[string]bool{"stdout": true, "stderr": true}, left: -1, lines: -1}
	if o.Limit != nil {
		p.left = *o.Limit
	}
	if o.Tail != nil && !o.Follow { // what is written meanwhile is too much
		p.lines = *o.Tail
	}
	if f != nil && o.Tail != nil {
		at, err := tailOffset(f, *o.Tail)
		if err != nil {
			return fmt.Errorf("finding the last lines of %s: %w", path, err)
		}
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	err = p.follow(ctx, f, path, w, ended, func(n *os.File) { f = n })
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// openNewest opens the log, or in the middle of a rotation the file that was just
// renamed.
func openNewest(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if old := rotated(path); len(old) > 0 {
			if g, gerr := os.Open(old[len(old)-1]); gerr == nil {
				return g, nil
			}
			return os.Open(path) // the rotation went on meanwhile
		}
	}
	return f, err
}

// Exists says whether there is a log at path, also in the middle of a rotation,
// when the file has just been renamed.
func Exists(path string) bool {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return len(rotated(path)) > 0
}

// printer formats lines.
type printer struct {
	o     Options
	out   map[string]io.Writer
	fresh map[string]bool // the stream is at the beginning of a line
	left  int64           // bytes that may be written; negative: any
	lines int64           // records that may be read; negative: any
	rest  []byte          // of a line whose end is not written yet

	batch []byte    // whole lines on their way to to: one write for many
	to    io.Writer // never nil while batch is not empty
}

// batchSize is how much is gathered before it is written.
const batchSize = 16 << 10

// flush writes what is gathered.
func (p *printer) flush() error {
	if len(p.batch) == 0 {
		return nil
	}
	_, err := p.to.Write(p.batch)
	p.batch = p.batch[:0]
	return err
}

func (p *printer) follow(ctx context.Context, f *os.File, path string, w *fsnotify.Watcher, ended <-chan struct{}, took func(*os.File)) error {
	over := false
	for {
		if f != nil {
			if err := p.drain(ctx, f); err != nil {
				return err
			}
			// Renamed by a rotation? Then the rest was just read; go on with
			// the new file.
			if w != nil {
				if next := successor(f, path); next != nil {
					if err := p.drain(ctx, f); err != nil {
						next.Close()
						return err
					}
					f.Close()
					f = next
					p.rest = nil // torn by a full disk; its end never came
					took(f)
					continue
				}
			}
		}
		if w == nil || over {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			over = true // read what came last, then stop
		case ev, ok := <-w.Events:
			if !ok {
				return nil
			}
			if f == nil && ev.Name == path {
				if n, err := openNewest(path); err == nil {
					f = n
					took(f)
				}
			}
		case err := <-w.Errors:
			if err != nil && !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watching the log: %w", err)
			}
		}
	}
}

// successor opens the file that was begun after f, if f is not the newest. When f
// was removed meanwhile, since its reader is slower than the writer, that is the
// oldest file there is.
func successor(f *os.File, path string) *os.File {
	have, err := f.Stat()
	if err != nil {
		return nil
	}
	for {
		now, err := os.Stat(path)
		if err != nil || os.SameFile(now, have) {
			return nil
		}
		files := append(rotated(path), path)
		if after, err := os.Stat(path); err != nil {
			return nil // in the middle of a rotation, which wakes us
		} else if !os.SameFile(now, after) {
			continue // the list may lack the file that was renamed
		}
		next := files[0]
		for i, name := range files[:len(files)-1] {
			if info, err := os.Stat(name); err == nil && os.SameFile(info, have) {
				next = files[i+1]
			}
		}
		n, err := os.Open(next)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil
		}
		if opened, err := n.Stat(); next != path || err == nil && os.SameFile(opened, now) {
			return n
		}
		n.Close() // renamed before it was opened
	}
}

// drain prints all whole lines that are in the file.
func (p *printer) drain(ctx context.Context, f *os.File) (err error) {
	defer func() {
		if ferr := p.flush(); err == nil || errors.Is(err, errLimit) && ferr != nil {
			err = ferr
		}
	}()
	br := bufio.NewReaderSize(f, 32<<10)
	for ctx.Err() == nil {
		chunk, err := br.ReadSlice('\n')
		if err == nil && len(p.rest) == 0 {
			if err := p.line(chunk); err != nil {
				return err
			}
			continue
		}
		p.rest = append(p.rest, chunk...)
		switch {
		case err == nil:
			line := p.rest
			p.rest = nil
			if err := p.line(line); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("reading a log: %w", err)
		}
	}
	return nil
}

// line prints one record; one that is damaged is left out.
func (p *printer) line(b []byte) error {
	b = bytes.TrimSuffix(b, []byte{'\n'})
	stamp, rest, ok1 := bytes.Cut(b, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || (!ok3 && len(tag) == 0) {
		return nil
	}
	if p.lines == 0 {
		return errLimit
	}
	p.lines--
	if !p.o.Since.IsZero() {
		t, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil || t.Before(p.o.Since) {
			return nil
		}
	}
	name := string(stream)
	w, known := p.out[name]
	if !known {
		return nil
	}
	partial := tag[0] == 'P'
	var out []byte
	if p.o.Timestamps && p.fresh[name] {
		out = append(append(out, stamp...), ' ')
	}
	out = append(out, text...)
	if !partial {
		out = append(out, '\n')
	}
	p.fresh[name] = !partial
	if w == nil {
		return nil
	}
	limited := false
	if p.left >= 0 && int64(len(out)) >= p.left {
		out, limited = out[:p.left], true
	}
	if p.left >= 0 {
		p.left -= int64(len(out))
	}
	if w != p.to || len(p.batch)+len(out) > batchSize {
		if err := p.flush(); err != nil {
			return err
		}
		p.to = w
	}
	p.batch = append(p.batch, out...)
	if limited {
		return errLimit
	}
	return nil
}

// tailOffset finds where the last n whole lines begin, from the end backwards.
func tailOffset(f *os.File, n int64) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n < 0 {
		return end, err
	}
	const block = 16 << 10
	buf := make([]byte, block)
	seen := int64(-1) // the end of the last one does not count
	for at := end; at > 0; {
		size := min(block, at)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if seen++; seen == n {
				return at + i + 1, nil
			}
		}
	}
	return 0, nil
}
