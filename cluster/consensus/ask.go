package consensus

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Ask calls a method of Config.Open of the server at an address, on a connection
// of its own: of a server of any epoch, by one that has no Node that runs. TLS is
// as in Config. from is the ID of the caller. A server that is not there is
// ErrUnreachable.
func Ask(ctx context.Context, client *tls.Config, addr, from, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := dialMember(ctx, (&net.Dialer{}).DialContext, client, addr, protoRPC)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	w := &frameWriter{conn: conn, w: bufio.NewWriter(conn)}
	req := binary.AppendUvarint(nil, uint64(max(time.Until(deadline).Milliseconds(), 0)))
	if err := w.write(frame{id: 1, kind: kindCall, body: appendCall(req, 0, from, method, body)}); err != nil {
		return nil, fmt.Errorf("%w: send to %s: %w", ErrUnreachable, addr, err)
	}
	f, err := readFrame(bufio.NewReader(conn))
	if err != nil {
		return nil, fmt.Errorf("%w: no answer from %s: %w", ErrUnreachable, addr, err)
	}
	if f.kind != statusOK {
		return nil, errorOf(f.kind, string(f.body))
	}
	return f.body, nil
}

// openMethod is the method of Config.Open that a request calls; nil if it calls none.
// The request's time takes k bytes.
func (n *Node) openMethod(f frame, k int) func(context.Context) ([]byte, error) {
	if f.kind != kindCall {
		return nil
	}
	_, from, method, body, err := parseCall(f.body[k:])
	h := n.c.Open[method]
	if err != nil || h == nil {
		return nil
	}
	return func(ctx context.Context) ([]byte, error) { return h(ctx, from, body) }
}

// sometimes says what is not to be said again within ten minutes.
type sometimes struct{ last atomic.Int64 }

func (s *sometimes) first() bool {
	now, last := time.Now().UnixNano(), s.last.Load()
	return (last == 0 || now-last > int64(10*time.Minute)) && s.last.CompareAndSwap(last, now)
}

// LastEntry is index and term of the last entry of the log, 0 if it has none. It
// can be asked before Run.
func (n *Node) LastEntry() (index, term uint64) {
	index, term = n.log.Snapshot()
	if last, err := n.log.LastIndex(); err == nil && last > index {
		index, term = last, n.log.LastTerm()
	}
	return index, term
}

// Started says whether Raft runs, or has run: Config.Consult has returned.
func (n *Node) Started() bool { return n.raft.Load() != nil }

// StoredMembers is the newest configuration that snapshot and log hold, for when
// Raft does not run. While it does, Members is what counts.
func (n *Node) StoredMembers() ([]Member, error) {
	all, err := n.snaps.List()
	if err != nil {
		return nil, fmt.Errorf("list raft snapshots: %w", err)
	}
	var config raft.Configuration
	from := uint64(1)
	if len(all) > 0 {
		config, from = all[0].Configuration, all[0].Index+1
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return nil, err
	}
	for i := from; i <= last; i++ {
		var e raft.Log
		if err := n.log.GetLog(i, &e); err != nil {
			return nil, fmt.Errorf("log entry %d: %w", i, err)
		}
		if e.Type == raft.LogConfiguration {
			config = raft.DecodeConfiguration(e.Data)
		}
	}
	var out []Member
	for _, s := range config.Servers {
		out = append(out, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out, nil
}
