package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/skiff-sh/skiff/fsm/durable"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// admission is what the leader that let a new server in says of the moment: the
// server votes for nobody before its log is that long, and hears no leader of an
// earlier term. Its ID may have been a voter's once, that was removed and has
// come back without its data. A member that was cut off meanwhile still takes
// it for one, and with its vote, or its answers, could lead a cluster of its own.
type admission struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	Sum   uint32 `json:"sum,omitempty"` // in the file: CRC-32C of the others
}

func (a admission) sum() uint32 {
	return crc32.Checksum(fmt.Appendf(nil, "%d %d", a.Term, a.Index), crc32.MakeTable(crc32.Castagnoli))
}

func admissionFile(dataDir string) string { return filepath.Join(raftdir.Path(dataDir), "admitted") }

// admitted is the leader's answer to a server that it lets in.
func (n *Node) admitted() ([]byte, error) {
	r := n.raft.Load()
	return json.Marshal(admission{Term: r.CurrentTerm(), Index: r.GetConfiguration().Index()})
}

// keepAdmission remembers the answer, also over a restart, until it has no more
// to say.
func (n *Node) keepAdmission(answer []byte) error {
	var a admission
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("the leader's answer: %w", err)
	}
	a.Sum = a.sum()
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := durable.Replace(admissionFile(n.c.DataDir), b, 0o600); err != nil {
		return err
	}
	n.admission.Store(&a)
	return nil
}

// loadAdmission is for the start.
func (n *Node) loadAdmission() error {
	b, err := os.ReadFile(admissionFile(n.c.DataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var a admission
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, admissionFile(n.c.DataDir), err)
	}
	if err = json.Unmarshal(b, &a); err == nil && a.Sum != a.sum() {
		err = errors.New("checksum does not match")
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, admissionFile(n.c.DataDir), err)
	}
	n.admission.Store(&a)
	return nil
}

// tooEarly answers a request that this server must not take part in yet: with a
// refusal, and the term that its sender should know of.
func (n *Node) tooEarly(r *raft.Raft, q raft.RPC) bool {
	a := n.admission.Load()
	if a == nil {
		return false
	}
	if r.CurrentTerm() >= a.Term && r.LastIndex() >= a.Index {
		if n.admission.CompareAndSwap(a, nil) {
			_ = os.Remove(admissionFile(n.c.DataDir)) // it says nothing any more
		}
		return false
	}
	header := n.header()
	term := max(a.Term, r.CurrentTerm())
	switch req := q.Command.(type) {
	case *raft.RequestVoteRequest:
		q.Respond(&raft.RequestVoteResponse{RPCHeader: header, Term: r.CurrentTerm()}, nil)
	case *raft.RequestPreVoteRequest:
		q.Respond(&raft.RequestPreVoteResponse{RPCHeader: header, Term: r.CurrentTerm()}, nil)
	case *raft.AppendEntriesRequest:
		if req.Term >= a.Term {
			return false
		}
		q.Respond(&raft.AppendEntriesResponse{RPCHeader: header, Term: term}, nil)
	case *raft.InstallSnapshotRequest:
		if req.Term >= a.Term {
			return false
		}
		n.trans.spare(q, &raft.InstallSnapshotResponse{RPCHeader: header, Term: term})
	case *raft.TimeoutNowRequest:
		q.Respond(&raft.TimeoutNowResponse{RPCHeader: header}, nil)
	default:
		return false
	}
	return true
}

func (n *Node) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.c.NodeID), Addr: []byte(n.c.AdvertiseAddr)}
}
