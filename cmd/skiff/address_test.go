package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
)

// TestUnlessMoved: a part that fails because its host has lost the address begins
// anew with the next one; other failures, and addresses that were given, are as
// they are.
func TestUnlessMoved(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name     string
		ctx      context.Context
		address  string
		detected bool
		err      error
		gone     bool
	}{
		{"lost", t.Context(), "192.0.2.1", true, failed, true},
		{"lost, but given", t.Context(), "192.0.2.1", false, failed, false},
		{"there", t.Context(), "127.0.0.1", true, failed, false},
		{"lost, no failure", t.Context(), "192.0.2.1", true, nil, false},
		{"lost, asked to stop", ended, "192.0.2.1", true, failed, false},
	} {
		o := &hostOptions{advertise: netip.MustParseAddr(tc.address), detected: tc.detected, logger: slog.New(slog.DiscardHandler)}
		err := o.unlessMoved(tc.ctx, tc.err)
		if !errors.Is(err, tc.err) || errors.Is(err, errAddressGone) != tc.gone {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
