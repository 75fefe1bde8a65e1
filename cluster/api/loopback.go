package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// loopback is an http.RoundTripper that calls the API's handler in this
// process: no socket, no TLS, no HTTP framing. Controllers, scheduler and
// informers of the server itself use it.
//
// Limits: connections cannot be upgraded.
type loopback struct {
	mu      sync.RWMutex
	handler http.Handler
}

// serve sets the handler; without one requests fail at once.
func (l *loopback) serve(h http.Handler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handler = h
}

var errNotServing = errors.New("the API of this server is not running")

// RoundTrip implements http.RoundTripper.
func (l *loopback) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.RLock()
	handler := l.handler
	l.mu.RUnlock()
	if handler == nil {
		return nil, errNotServing
	}
	ctx, cancel := context.WithCancel(req.Context())
	in := req.Clone(ctx)
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &loopbackWriter{ctx: ctx, header: http.Header{}, ready: make(chan struct{}), body: newStream(cancel)}
	go func() {
		defer cancel()
		defer in.Body.Close()
		defer func() {
			switch r := recover(); r {
			case nil:
				w.WriteHeader(http.StatusOK)
				w.body.finish(io.EOF)
			default: // the panic filter has logged it and asks for the connection to end
				w.WriteHeader(http.StatusInternalServerError)
				w.body.finish(io.ErrUnexpectedEOF)
			}
		}()
		handler.ServeHTTP(w, in)
	}()
	select {
	case <-w.ready:
	case <-req.Context().Done():
		cancel()
		return nil, req.Context().Err()
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status,
		Proto: "HTTP/2.0", ProtoMajor: 2, ContentLength: -1,
		Header: w.sent, Body: w.body, Request: req,
	}, nil
}

// loopbackWriter is the handler's end of a response.
type loopbackWriter struct {
	ctx    context.Context
	header http.Header
	once   sync.Once
	ready  chan struct{} // closed when status and sent are set
	status int
	sent   http.Header
	body   *stream
}

func (w *loopbackWriter) Header() http.Header { return w.header }

func (w *loopbackWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.ready)
	})
}

func (w *loopbackWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.write(p)
}

// Flush implements http.Flusher: what is written can be read at once.
func (w *loopbackWriter) Flush() { w.WriteHeader(http.StatusOK) }

// CloseNotify implements http.CloseNotifier, which the library asks for where
// it wraps a writer that can flush.
func (w *loopbackWriter) CloseNotify() <-chan bool {
	c := make(chan bool, 1)
	context.AfterFunc(w.ctx, func() { c <- true })
	return c
}

// streamLimit is how much an unread response may hold before its writer waits.
const streamLimit = 1 << 20

// stream is a bounded buffer between one writer and one reader.
type stream struct {
	cancel context.CancelFunc // ends the handler

	mu     sync.Mutex
	moved  sync.Cond
	buf    []byte
	read   int // of buf
	err    error
	closed bool
}

func newStream(cancel context.CancelFunc) *stream {
	s := &stream{cancel: cancel}
	s.moved.L = &s.mu
	return s
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buf)-s.read > streamLimit && !s.closed {
		s.moved.Wait()
	}
	if s.closed {
		return 0, http.ErrHandlerTimeout
	}
	if s.read == len(s.buf) {
		s.buf, s.read = s.buf[:0], 0
	}
	s.buf = append(s.buf, p...)
	s.moved.Broadcast()
	return len(p), nil
}

func (s *stream) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.moved.Broadcast()
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.read == len(s.buf) && s.err == nil && !s.closed {
		s.moved.Wait()
	}
	switch {
	case s.closed:
		return 0, http.ErrBodyReadAfterClose
	case s.read == len(s.buf):
		return 0, s.err
	}
	n := copy(p, s.buf[s.read:])
	s.read += n
	s.moved.Broadcast()
	return n, nil
}

// Close implements io.Closer; the handler's context ends.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.buf, s.read = nil, 0
	s.moved.Broadcast()
	s.cancel()
	return nil
}
