//go:build cgo

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLogLine is where a long line is split into pieces tagged P.
const maxLogLine = 16 << 10

// flushLog is how much formatted output is gathered before it is written.
const flushLog = 32 << 10

// timestampFormat has a fixed width, as kubelet's own log lines have.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// logFile writes a container's output in the CRI log format:
//
//	<time> stdout|stderr F|P <text>
//
// F ends a line; P is a piece whose line goes on. Write errors (a full disk)
// lose output rather than block the container.
type logFile struct {
	path string // "" drops all output

	mu     sync.Mutex
	f      *os.File
	torn   bool // the last write ended within a line
	closed bool
	out    []byte
}

// logLine is the unfinished line of one stream.
type logLine struct{ rest []byte }

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return l, l.reopen()
}

// reopen opens the path anew, after a rotation moved the file away. Nothing is
// written to the old file once the new one can be seen: who follows the log may
// then leave the old one for good.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return os.ErrClosed
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	old := l.f
	l.f, l.torn = f, false
	l.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// write logs a piece of a stream's output.
func (l *logFile) write(stream string, line *logLine, b []byte) {
	if l.path == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UTC()
	for len(b) > 0 {
		part, whole := b, false
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			part, whole = b[:i], true
		}
		if room := maxLogLine - len(line.rest); len(part) > room {
			part, whole = part[:room], false
		}
		b = b[len(part):]
		switch {
		case whole:
			b = b[1:]
			l.line(now, stream, 'F', line.rest, part)
			line.rest = nil
		case len(line.rest)+len(part) == maxLogLine:
			l.line(now, stream, 'P', line.rest, part)
			line.rest = nil
		default:
			line.rest = append(line.rest, part...)
		}
	}
	l.flush()
}

// end logs what a stream ended with when that was no newline.
func (l *logFile) end(stream string, line *logLine) {
	if len(line.rest) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line(time.Now().UTC(), stream, 'P', line.rest, nil)
	line.rest = nil
	l.flush()
}

func (l *logFile) line(t time.Time, stream string, tag byte, a, b []byte) {
	if l.out == nil {
		l.out = make([]byte, 0, len(a)+len(b)+64)
	}
	l.out = t.AppendFormat(l.out, timestampFormat)
	l.out = append(l.out, ' ')
	l.out = append(l.out, stream...)
	l.out = append(l.out, ' ', tag, ' ')
	l.out = append(l.out, a...)
	l.out = append(l.out, b...)
	l.out = append(l.out, '\n')
	if len(l.out) >= flushLog {
		l.flush()
	}
}

// flush writes what is gathered. The buffer is kept only when it is small.
func (l *logFile) flush() {
	if len(l.out) > 0 && l.f != nil {
		out := l.out
		if l.torn {
			out = append([]byte{'\n'}, out...)
		}
		n, err := l.f.Write(out)
		if n > 0 {
			l.torn = out[n-1] != '\n'
		}
		_ = err // a full disk loses output; the next piece is tried again
	}
	if cap(l.out) > 4<<10 {
		l.out = nil
	} else {
		l.out = l.out[:0]
	}
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
