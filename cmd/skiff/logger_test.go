package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestLibrariesDoNotRepeatThemselves(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := slog.New(seldom{slog.NewTextHandler(&out, nil), &saidBefore{at: map[string]time.Time{}}})
	for range 3 {
		l.Error("Failed to watch", "err", errors.New("failed to list *v1.Pod: connection refused"))
		l.With("x", 1).Error("Failed to watch", "err", errors.New("failed to list *v1.Pod: timeout"))
		l.Error("Failed to watch", "err", errors.New("failed to list *v1.Node: timeout"))
		l.Error("other")
	}
	if n := strings.Count(out.String(), "\n"); n != 3 {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}
