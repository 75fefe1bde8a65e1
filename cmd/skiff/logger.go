package main

import (
	"context"
	"io"
	"log/slog"

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
	library := slog.New(atLeast{h, slog.LevelError})
	if level >= 4 {
		library = l
	}
	klog.SetSlogLogger(library)
	return l, nil
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
