package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// newLogger logs to w. The Kubernetes libraries log through it as well, their
// errors always, the rest from level 4 on.
func newLogger(w io.Writer, format string, level int) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if level > 0 {
		o.Level = slog.LevelDebug
	}
	var h slog.Handler
	switch format {
	case "text":
		h = slog.NewTextHandler(w, o)
	case "json":
		h = slog.NewJSONHandler(w, o)
	default:
		return nil, usagef("--log-format is %q, want text or json", format)
	}
	l := slog.New(h)
	library := slog.New(seldom{atLeast{h, slog.LevelError}, &saidBefore{at: map[string]time.Time{}}})
	if level >= 4 {
		library = l
	}
	klog.SetSlogLogger(library)
	return l, nil
}

// saidEvery is how often the libraries may say the same. While no server
// answers, each of their informers complains at each attempt.
const (
	saidEvery  = 10 * time.Minute
	saidLength = 24  // of an error: where it begins alike it is the same
	saidMost   = 256 // are remembered
)

// seldom drops records whose message and beginning of the error were said
// lately.
type seldom struct {
	slog.Handler
	before *saidBefore
}

type saidBefore struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (s seldom) Handle(ctx context.Context, r slog.Record) error {
	key := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			text := a.Value.String()
			key += text[:min(len(text), saidLength)]
		}
		return true
	})
	s.before.mu.Lock()
	last, said := s.before.at[key]
	again := !said || r.Time.Sub(last) >= saidEvery
	if again {
		if len(s.before.at) >= saidMost {
			clear(s.before.at)
		}
		s.before.at[key] = r.Time
	}
	s.before.mu.Unlock()
	if !again {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}

func (s seldom) WithAttrs(attrs []slog.Attr) slog.Handler {
	return seldom{s.Handler.WithAttrs(attrs), s.before}
}
func (s seldom) WithGroup(name string) slog.Handler {
	return seldom{s.Handler.WithGroup(name), s.before}
}

// atLeast drops records below a level.
type atLeast struct {
	slog.Handler
	min slog.Level
}

func (a atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= a.min && a.Handler.Enabled(ctx, l)
}
func (a atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{a.Handler.WithAttrs(attrs), a.min}
}
func (a atLeast) WithGroup(name string) slog.Handler {
	return atLeast{a.Handler.WithGroup(name), a.min}
}
