package consensus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Members of one later epoch work together; one of another epoch is refused by
// them, as a voter and as one who asks to be let in.
func TestEpochsAreKeptApart(t *testing.T) {
	second := raftdir.Epoch{}.Next(raftdir.Restored, "a", time.Now())
	la := listen(t, "127.0.0.1:0")
	at := la.Addr().String()
	a := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: la, Epoch: second, Bootstrap: []Server{{ID: "a", Addr: at}}})
	a.awaitReady(t)
	b := start(t, Config{NodeID: "b", DataDir: t.TempDir(), Epoch: second, Join: []string{at}})
	b.awaitReady(t)
	if r := b.put(t, "/a", "1", 0); r.Err != nil || a.get("/a") != "1" {
		t.Errorf("a write through a follower: %+v", r)
	}
	for _, e := range []raftdir.Epoch{{}, raftdir.Epoch{}.Next(raftdir.Recovered, "b", time.Now())} {
		c := start(t, Config{NodeID: "c", DataDir: t.TempDir(), Epoch: e, Join: []string{at}})
		eventually(t, "it runs", func() bool { return c.raft.Load() != nil })
		err := c.askToJoin(t.Context(), c.raft.Load(), true)
		if !errors.Is(err, ErrEpoch) {
			t.Errorf("%s asks to be let in: %v", e, err)
		}
		if len(a.Members()) != 2 {
			t.Errorf("members: %v", a.Members())
		}
		c.stop(t)
	}
}

// The open methods are for everybody, and answered while the node still consults.
func TestAskAnyEpoch(t *testing.T) {
	goOn := make(chan struct{})
	refuse := errors.New("stay away")
	l := listen(t, "127.0.0.1:0")
	at := l.Addr().String()
	a := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: l, Bootstrap: []Server{{ID: "a", Addr: at}},
		Epoch: raftdir.Epoch{}.Next(raftdir.Restored, "a", time.Now()),
		Open: map[string]Handler{"who": func(_ context.Context, from string, body []byte) ([]byte, error) {
			if string(body) == "bad" {
				return nil, ErrNotReady
			}
			return []byte("a asked by " + from), nil
		}},
		Consult: func(ctx context.Context) error {
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return nil
		}})
	for range 2 {
		got, err := Ask(t.Context(), testTLS(), at, "x", "who", nil)
		if err != nil || string(got) != "a asked by x" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := Ask(t.Context(), testTLS(), at, "x", "who", []byte("bad")); !errors.Is(err, ErrNotReady) {
			t.Errorf("an error came as %v", err)
		}
		if _, err := Ask(t.Context(), testTLS(), at, "x", methodStats, nil); !errors.Is(err, ErrEpoch) {
			t.Errorf("another method: %v", err)
		}
		select {
		case <-goOn:
		default:
			if a.raft.Load() != nil {
				t.Error("Raft runs before the others were asked")
			}
			close(goOn)
			a.awaitReady(t)
		}
	}
	a.stop(t)
	if _, err := Ask(t.Context(), testTLS(), at, "x", "who", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a server that is gone: %v", err)
	}
	n, err := New(Config{NodeID: "a", DataDir: a.config.DataDir, Listener: listen(t, "127.0.0.1:0"), AdvertiseAddr: at, TLS: testTLS(),
		FSM: fsm.New(store.New(store.Config{})), Logger: testLogger(t), Consult: func(context.Context) error { return refuse }})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); !errors.Is(err, refuse) {
		t.Errorf("Run: %v", err)
	}
}

// Two voters of which each has another epoch never make a leader.
func TestNoVotesBetweenEpochs(t *testing.T) {
	second := raftdir.Epoch{}.Next(raftdir.Restored, "a", time.Now())
	la, lb := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	servers := []Server{{ID: "a", Addr: la.Addr().String()}, {ID: "b", Addr: lb.Addr().String()}}
	a := start(t, Config{NodeID: "a", DataDir: t.TempDir(), Listener: la, Epoch: second, Bootstrap: servers, HeartbeatTimeout: hasty})
	b := start(t, Config{NodeID: "b", DataDir: t.TempDir(), Listener: lb, Bootstrap: servers, HeartbeatTimeout: hasty})
	for end := time.Now().Add(5 * hasty); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if a.IsLeader() || b.IsLeader() {
			t.Fatal("a leader was elected")
		}
	}
	_, err := b.Call(t.Context(), "a", methodStats, nil)
	if !errors.Is(err, ErrEpoch) || !strings.Contains(err.Error(), "epoch 2 (by restore on a") {
		t.Errorf("a call between epochs: %v", err)
	}
}
