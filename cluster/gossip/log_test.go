package gossip

import (
	"fmt"
	"log/slog"
	"testing"
)

func TestMemberlistsLinesAreSiftedAndSaidOnce(t *testing.T) {
	t.Parallel()
	out := &lockedBuffer{}
	l := memberlistLogger(slog.New(slog.NewTextHandler(out, nil)), &quieter{})
	for i := range 30 {
		l.Printf("[ERR] memberlist: Decrypt packet failed: no installed keys could decrypt the message from=192.0.2.%d:6445", i%2)
		l.Printf("[ERR] memberlist: Failed to send UDP ping: %v", "no route to host")
		if i < 19 {
			l.Printf("[WARN] memberlist: Was able to connect to %s over TCP but UDP probes failed, network may be misconfigured", fmt.Sprint(i))
		}
	}
	if n := out.count("key that is not ours"); n != 2 {
		t.Errorf("two senders with a wrong key: said %d times", n)
	}
	if out.count("no route") > 0 || out.count("over UDP") > 0 {
		t.Error("what is no problem was said")
	}
	for range 5 {
		l.Printf("[WARN] memberlist: Was able to connect to x over TCP but UDP probes failed, network may be misconfigured")
	}
	if n := out.count("over UDP"); n != 1 {
		t.Errorf("blocked UDP: said %d times", n)
	}
}

func TestKeysThatStayAreNotSaidToChange(t *testing.T) {
	t.Parallel()
	out := &lockedBuffer{}
	c := newFleet(t, fast).config(1)
	c.Keys, c.Logger = [][]byte{key1, key2}, slog.New(slog.NewTextHandler(out, nil))
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for i, step := range []struct {
		keys [][]byte
		said int
	}{{[][]byte{key1, key2}, 0}, {[][]byte{key2, key1}, 1}, {[][]byte{key2, key1}, 1}, {[][]byte{key2}, 2}, {[][]byte{key1}, 3}} {
		if err := g.SetKeys(step.keys); err != nil {
			t.Fatal(err)
		}
		if n := out.count("keys changed"); n != step.said {
			t.Errorf("step %d: said %d times, want %d", i, n, step.said)
		}
	}
}
