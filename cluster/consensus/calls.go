package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// A call is
//
//	1 byte flags, uvarint length, ID of the caller, uvarint length, method, body
const callLeaderOnly = 1 // flag: only the leader may answer

// ownMethods begins the names of this package's methods.
const ownMethods = "raft/"

func appendCall(dst []byte, flags byte, from, method string, body []byte) []byte {
	dst = append(dst, flags)
	for _, s := range []string{from, method} {
		dst = binary.AppendUvarint(dst, uint64(len(s)))
		dst = append(dst, s...)
	}
	return append(dst, body...)
}

func parseCall(b []byte) (flags byte, from, method string, body []byte, err error) {
	malformed := errors.New("malformed call")
	if len(b) == 0 {
		return 0, "", "", nil, malformed
	}
	flags, b = b[0], b[1:]
	for _, s := range []*string{&from, &method} {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return 0, "", "", nil, malformed
		}
		*s, b = string(b[k:k+int(n)]), b[k+int(n):]
	}
	return flags, from, method, b, nil
}

// answerCall runs the method that another member calls.
func (n *Node) answerCall(ctx context.Context, b []byte) ([]byte, error) {
	flags, from, method, body, err := parseCall(b)
	if err != nil {
		return nil, err
	}
	if flags&callLeaderOnly != 0 && n.lead.leadingTerm() == 0 {
		return nil, ErrNotLeader
	}
	out, err := n.runMethod(ctx, from, method, body)
	if err == nil && len(out) > maxFrame-frameHead {
		return nil, fmt.Errorf("the answer to %s has %d bytes", method, len(out))
	}
	return out, err
}

func (n *Node) runMethod(ctx context.Context, from, method string, body []byte) ([]byte, error) {
	h := n.methods[method]
	if h == nil {
		h = n.c.Handlers[method]
	}
	if h == nil {
		return nil, fmt.Errorf("method %q is not known to this version of skiff", method)
	}
	return h(ctx, from, body)
}

// Call runs Handlers[method] on a member, which can be this one. ErrUnreachable
// and ErrNotMember say that it was not run, ErrUnknownOutcome leaves that open.
// Without a deadline in ctx it takes at most ten seconds.
func (n *Node) Call(ctx context.Context, memberID, method string, body []byte) ([]byte, error) {
	if memberID == n.c.NodeID {
		return n.runMethod(ctx, memberID, method, body)
	}
	for _, m := range n.Members() {
		if m.ID == memberID {
			return n.callAddr(ctx, m.Address, method, body)
		}
	}
	return nil, fmt.Errorf("call %s of %s: %w", method, memberID, ErrNotMember)
}

func (n *Node) callAddr(ctx context.Context, addr, method string, body []byte) ([]byte, error) {
	return n.peers.call(ctx, addr, kindCall, appendCall(nil, 0, n.c.NodeID, method, body))
}

// CallLeader runs Handlers[method] on the leader, which can be this member. It
// waits for one for at most Config.ElectionWait; ErrNoLeader says that it was not
// run.
func (n *Node) CallLeader(ctx context.Context, method string, body []byte) (out []byte, err error) {
	err = n.withLeader(ctx, func(_ *raft.Raft, leader string) error {
		if leader == "" {
			if n.lead.leadingTerm() == 0 {
				return ErrNotLeader
			}
			out, err = n.runMethod(ctx, n.c.NodeID, method, body)
			return err
		}
		out, err = n.peers.callLeader(ctx, leader, kindCall, appendCall(nil, callLeaderOnly, n.c.NodeID, method, body))
		return err
	})
	return out, err
}
