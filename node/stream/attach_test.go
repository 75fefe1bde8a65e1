package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// talker is a container that writes a line after each pause, once it was sent
// something or its caller's input is over, and then ends or runs on.
type talker struct {
	pod.Sandbox
	pauses []time.Duration
	ends   bool
}

func (s talker) Attach(ctx context.Context, _ string, in io.Reader, out, _ io.Writer, _ bool, _ <-chan runtime.Size) error {
	if in != nil {
		go func() { _, _ = io.Copy(io.Discard, in) }()
	}
	for _, d := range s.pauses {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := io.WriteString(out, "."); err != nil {
			return err
		}
	}
	if s.ends {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// pipe is a stream to a caller that takes its time for each piece.
type pipe struct {
	bytes.Buffer
	slow time.Duration
}

func (p *pipe) Write(b []byte) (int, error) {
	time.Sleep(p.slow)
	return p.Buffer.Write(b)
}

func (*pipe) Close() error { return nil }

// What a container answers after the end of its caller's input reaches the
// caller, though the container's own stdin stays open and it runs on.
func TestAttachWaitsForTheAnswer(t *testing.T) {
	broken := errors.New("connection reset")
	times := func(n int, d time.Duration) (out []time.Duration) {
		for range n {
			out = append(out, d)
		}
		return out
	}
	for name, tc := range map[string]struct {
		in    io.Reader
		s     talker
		slow  time.Duration
		tty   bool
		want  int           // pieces
		after time.Duration // the session's end
	}{
		"an answer":               {in: strings.NewReader("x"), s: talker{pauses: times(1, 900*time.Millisecond)}, want: 1, after: 1900 * time.Millisecond},
		"of a terminal":           {in: strings.NewReader("x"), tty: true, s: talker{pauses: times(1, 900*time.Millisecond)}, want: 1, after: 1900 * time.Millisecond},
		"in pieces":               {in: strings.NewReader("x"), s: talker{pauses: times(5, 900*time.Millisecond)}, want: 5, after: 5500 * time.Millisecond},
		"none":                    {in: strings.NewReader("x"), after: time.Second},
		"too late":                {in: strings.NewReader("x"), s: talker{pauses: times(1, 1100*time.Millisecond)}, after: time.Second},
		"without end":             {in: strings.NewReader("x"), s: talker{pauses: times(1000, 300*time.Millisecond)}, want: 33, after: 10 * time.Second},
		"of one that ends":        {in: strings.NewReader("x"), s: talker{pauses: times(2, 400*time.Millisecond), ends: true}, want: 2, after: 800 * time.Millisecond},
		"to a slow caller":        {in: strings.NewReader("x"), slow: 3 * time.Second, s: talker{pauses: times(2, time.Millisecond)}, want: 2, after: 7002 * time.Millisecond},
		"the caller has left":     {in: iotest.ErrReader(broken), s: talker{pauses: times(1, time.Millisecond)}, after: 0},
		"without input":           {s: talker{pauses: times(2, 20*time.Second), ends: true}, want: 2, after: 40 * time.Second},
		"what was sent before it": {in: io.MultiReader(strings.NewReader("x"), later{3 * time.Second}), s: talker{pauses: times(1, 2*time.Second)}, want: 1, after: 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &pipe{slow: tc.slow}
				start := time.Now()
				err := caller{sandbox: tc.s, tty: tc.tty}.AttachContainer(t.Context(), "", "", "", tc.in, out, nil, tc.tty, nil)
				if got := time.Since(start); err != nil || out.Len() != tc.want || got != tc.after {
					t.Errorf("%v, %d pieces after %s, want %d after %s", err, out.Len(), got, tc.want, tc.after)
				}
			})
		})
	}
}

// later is at its end after a while.
type later struct{ time.Duration }

func (l later) Read([]byte) (int, error) {
	time.Sleep(l.Duration)
	return 0, io.EOF
}
