package consensus

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// On an RPC connection both sides send frames:
//
//	uint32 length of the rest, uint64 id, 1 byte kind or status, body
//
// Numbers of fixed size are big-endian. The id ties an answer to its request;
// answers come in any order.
const (
	frameHead = 4 + 8 + 1
	maxFrame  = fsm.MaxCommandBytes + 64<<10

	kindPropose   = 1 // body: uvarint milliseconds until the deadline, encoded command
	kindReadIndex = 2 // body: uvarint milliseconds until the deadline
	kindCall      = 3 // body: uvarint milliseconds until the deadline, call
	kindEpoch     = 4 // body: epoch of the caller's log, if it is not the first; comes before all others, has no answer
)

// Statuses of an answer. With any but statusOK the body is a text.
const (
	statusOK        = 0 // body: as the kind says
	statusNotLeader = 1
	statusNoSpace   = 2
	statusUnknown   = 3 // ErrUnknownOutcome
	statusFailed    = 4 // nothing was done
	statusStorage   = 5 // ErrStorageFailed
	statusNoLeader  = 6
	statusNotMember = 7
	statusQuorum    = 8 // ErrQuorumRisk
	statusNotReady  = 9
	statusRefused   = 10
	statusVersion   = 11
	statusEpoch     = 12
)

// statuses are the errors that have one. The first that an error wraps counts.
var statuses = []struct {
	status byte
	err    error
}{
	{statusStorage, ErrStorageFailed},
	{statusUnknown, ErrUnknownOutcome},
	{statusNotLeader, ErrNotLeader},
	{statusNoSpace, ErrNoSpace},
	{statusNoLeader, ErrNoLeader},
	{statusNotMember, ErrNotMember},
	{statusQuorum, ErrQuorumRisk},
	{statusNotReady, ErrNotReady},
	{statusRefused, ErrRefused},
	{statusVersion, ErrVersion},
	{statusEpoch, ErrEpoch},
}

const (
	requestTimeout = 10 * time.Second // for requests whose context has no deadline
	writeTimeout   = 10 * time.Second // for one frame
)

type frame struct {
	id   uint64
	kind byte
	body []byte
}

func readFrame(r *bufio.Reader) (f frame, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	n := int(binary.BigEndian.Uint32(head[:])) - (frameHead - 4)
	if n < 0 || n > maxFrame {
		return f, fmt.Errorf("frame of %d bytes", n)
	}
	f.id, f.kind = binary.BigEndian.Uint64(head[4:]), head[12]
	f.body = make([]byte, n)
	_, err = io.ReadFull(r, f.body)
	return f, err
}

// frameWriter writes frames of many goroutines. The first error is final.
type frameWriter struct {
	conn    net.Conn
	waiting atomic.Int32 // those that want to write: the last of them flushes
	mu      sync.Mutex   // guards the rest
	w       *bufio.Writer
	err     error
}

func (fw *frameWriter) write(f frame) error {
	var head [frameHead]byte
	binary.BigEndian.PutUint32(head[:], uint32(frameHead-4+len(f.body)))
	binary.BigEndian.PutUint64(head[4:], f.id)
	head[12] = f.kind
	fw.waiting.Add(1)
	fw.mu.Lock()
	defer fw.mu.Unlock()
	last := fw.waiting.Add(-1) == 0
	if fw.err != nil {
		return fw.err
	}
	fw.err = fw.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	for _, b := range [][]byte{head[:], f.body} {
		if fw.err == nil {
			_, fw.err = fw.w.Write(b)
		}
	}
	if fw.err == nil && last {
		fw.err = fw.w.Flush()
	}
	return fw.err
}

// serveRPC answers requests on one connection until it ends.
func (n *Node) serveRPC(conn net.Conn) {
	ctx, cancel := n.untilStopped(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	r := bufio.NewReader(conn)
	w := &frameWriter{conn: conn, w: bufio.NewWriter(conn)}
	caller := raftdir.Epoch{Number: 1}
	for {
		f, err := readFrame(r)
		if err == nil && f.kind == kindEpoch {
			if caller, err = raftdir.DecodeEpoch(f.body); err == nil {
				continue
			}
		}
		if err != nil {
			if err != io.EOF && ctx.Err() == nil {
				n.c.Logger.Debug("rpc connection ended", "from", conn.RemoteAddr(), "error", err)
			}
			cancel()
			return
		}
		wg.Go(func() {
			status, body := n.answer(ctx, f, caller)
			if err := w.write(frame{f.id, status, body}); err != nil {
				conn.Close()
			}
		})
	}
}

// answer does what a request asks for, of a member whose log is of that epoch.
func (n *Node) answer(ctx context.Context, f frame, caller raftdir.Epoch) (status byte, body []byte) {
	ms, k := binary.Uvarint(f.body)
	if k <= 0 {
		return statusFailed, []byte("malformed request")
	}
	timeout := min(time.Duration(ms)*time.Millisecond, time.Minute)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if open := n.openMethod(f, k); open != nil {
		out, err := open(ctx)
		if err != nil {
			return statusOf(err), []byte(err.Error())
		}
		return statusOK, out
	}
	if caller.ID != n.c.Epoch.ID {
		return statusEpoch, fmt.Appendf(nil, "it has %s, and this server %s", n.c.Epoch, caller)
	}
	if n.raft.Load() == nil {
		return statusFailed, []byte("not started yet")
	}
	var err error
	switch f.kind {
	case kindPropose:
		var r fsm.Result
		var index uint64
		if err = fsm.CheckCommand(f.body[k:]); err == nil {
			r, index, err = n.proposeHere(ctx, f.body[k:])
		}
		if err == nil {
			return statusOK, appendResult(binary.AppendUvarint(nil, index), r)
		}
	case kindReadIndex:
		var index uint64
		if index, err = n.readIndexHere(ctx); err == nil {
			return statusOK, binary.AppendUvarint(nil, index)
		}
	case kindCall:
		var out []byte
		if out, err = n.answerCall(ctx, f.body[k:]); err == nil {
			return statusOK, out
		}
	default:
		err = fmt.Errorf("request of kind %d is not known to this version of skiff", f.kind)
	}
	return statusOf(err), []byte(err.Error())
}

func statusOf(err error) byte {
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return statusFailed
}

func errorOf(status byte, text string) error {
	if status == statusStorage {
		return fmt.Errorf("%w: %w: the other server says: %s", ErrUnknownOutcome, ErrStorageFailed, text)
	}
	for _, s := range statuses {
		if s.status == status {
			return fmt.Errorf("%w: the other server says: %s", s.err, text)
		}
	}
	return fmt.Errorf("the other server refused: %s", text)
}
