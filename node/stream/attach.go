package stream

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// A container whose stdin outlives the caller's may not have answered yet when
// that ends. The session goes on until its output was silent for answerSilence,
// at most for answerLongest.
const (
	answerSilence = time.Second
	answerLongest = 10 * time.Second
)

// AttachContainer implements remotecommand.Attacher. Where the container's
// stdin outlives the caller's, the end of the caller's ends the session, once
// the container has answered.
func (c caller) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	detached := make(chan struct{})
	stdout, stderr := writer(out), writer(errs)
	if in != nil && (c.tty || !c.once) {
		a := &answer{end: sync.OnceFunc(func() { close(detached); cancel() })}
		defer a.stop()
		in = &endingReader{Reader: in, ended: a.await}
		stdout, stderr = a.through(stdout), a.through(stderr)
	}
	err := c.sandbox.Attach(ctx, c.id, in, stdout, stderr, c.tty, sizes(ctx, resize))
	select {
	case <-detached:
		return nil
	default:
		return err
	}
}

// endingReader calls ended once, at the first end or failure of the Reader.
type endingReader struct {
	io.Reader
	ended func(error)
}

func (r *endingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		return n, nil // what was read is passed on before the end is seen
	}
	if err != nil && r.ended != nil {
		r.ended(err)
		r.ended = nil
	}
	return n, err
}

// answer calls end when the output that follows the end of the input is over.
type answer struct {
	end func() // may be called several times

	mu              sync.Mutex
	silent, longest *time.Timer // nil while there is input
	writing         bool
}

// await is told that the input has ended; it waits for no answer to one that
// broke.
func (a *answer) await(err error) {
	if !errors.Is(err, io.EOF) {
		a.end()
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.longest = time.AfterFunc(answerLongest, a.end)
	a.silent = time.AfterFunc(answerSilence, a.wasSilent)
}

func (a *answer) wasSilent() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.writing { // else the caller is slow, the container is not silent
		a.end()
	}
}

func (a *answer) written(begins bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writing = begins
	if !begins && a.silent != nil {
		a.silent.Reset(answerSilence)
	}
}

func (a *answer) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent != nil {
		a.silent.Stop()
		a.longest.Stop()
	}
}

// through has a see what is written to w, which may be nil. Writes to all
// streams of a come one after the other.
func (a *answer) through(w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return answerWriter{w, a}
}

type answerWriter struct {
	io.Writer
	a *answer
}

func (w answerWriter) Write(p []byte) (int, error) {
	w.a.written(true)
	defer w.a.written(false)
	return w.Writer.Write(p)
}
