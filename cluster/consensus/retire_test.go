package consensus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// A member that was removed says so at once to whoever writes or reads through
// it, keeps what it has, and no longer disturbs the others.
func TestARetiredMember(t *testing.T) {
	t.Parallel()
	members := grow(t, hasty, Config{}, Config{})
	a, c := members[0], members[2]
	a.put(t, "/a", "1", 0)
	eventually(t, "c has it", func() bool { return c.get("/a") == "1" })
	if err := a.Remove(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	// What waits for a leader that does not come is answered too.
	waiting := make(chan error, 1)
	go func() {
		for {
			_, err := c.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/c", Value: []byte("1"), Expect: fsm.Any}))
			if err != nil && !errors.Is(err, ErrNoLeader) {
				waiting <- err
				return
			}
		}
	}()
	why := errors.New("removed by X: start anew")
	time.Sleep(hasty)
	c.Retire(why)
	c.Retire(errors.New("again"))
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), why.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	select {
	case err := <-waiting:
		check("a write under way", err)
	case <-time.After(20 * time.Second):
		t.Fatal("a write waits still")
	}
	began := time.Now()
	_, err := c.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/c", Value: []byte("2"), Expect: fsm.Any}))
	check("write", err)
	check("read", c.ReadIndex(t.Context()))
	_, err = c.CallLeader(t.Context(), "x", nil)
	check("call", err)
	_, err = c.MemberStats(t.Context())
	check("stats", err)
	if d := time.Since(began); d > c.c.ElectionWait/2 {
		t.Errorf("the answers took %v", d)
	}
	if c.get("/a") != "1" || c.IsLeader() {
		t.Error("it has lost what it had, or leads")
	}
	a.put(t, "/b", "1", 0)
	config := c.config
	c.stop(t)

	// Started again, it is told before it has talked to anybody.
	config.Listener, config.FSM, config.AdvertiseAddr, config.Join = listen(t, "127.0.0.1:0"), fsm.New(store.New(store.Config{})), "127.0.0.1:1", nil
	config.TLS = a.c.TLS
	config.Logger = a.c.Logger
	again, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	again.Retire(why)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- again.Run(ctx) }()
	check("write of one that begins", func() error {
		_, err := again.Propose(t.Context(), fsm.One(fsm.Op{Type: fsm.Put, Key: "/c", Value: []byte("2"), Expect: fsm.Any}))
		return err
	}())
	select {
	case <-again.Ready():
		t.Error("it says that it is ready")
	case err := <-ended:
		t.Errorf("it has ended: %v", err)
	case <-time.After(2 * hasty):
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
