package pki

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// counted is a connection that counts how often it is closed.
type counted struct {
	net.Conn
	closed *atomic.Int32
}

func (c counted) Close() error {
	c.closed.Add(1)
	return c.Conn.Close()
}

// TestFailedHandshakeLeavesNothing: the timer that ends a connection before its
// certificate expires ends with a connection that does not come about.
func TestFailedHandshakeLeavesNothing(t *testing.T) {
	p := mustOpen(t)
	const soon = 300 * time.Millisecond
	life := leafLife + backdate
	issued := time.Now().Add(soon - leafLife + life/10)
	p.clock = func() time.Time { return issued }
	l := mustLeaf(t, p, "a")
	var closed atomic.Int32
	dial := DialTLS(l, TLSOptions{}, func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		there.Close()
		return counted{here, &closed}, nil
	})
	if c, err := dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil {
		c.Close()
		t.Fatal("connected to nobody")
	}
	then := closed.Load()
	time.Sleep(2 * soon)
	if now := closed.Load(); then == 0 || now != then {
		t.Errorf("closed %d times, and then %d times more", then, now-then)
	}
}
