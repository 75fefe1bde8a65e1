package consensus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/raftdir"
)

// Server is a member of the cluster.
type Server = raftdir.Member

// Config of a Node. The fields without a default are required.
type Config struct {
	NodeID        string       // stable identity of this member
	DataDir       string       // Raft's files go to DataDir/raft
	Listener      net.Listener // the Raft and RPC port, without TLS; the Node closes it
	AdvertiseAddr string       // host:port under which other members reach Listener

	// TLS is used for both directions. It must ask for and verify the peer's
	// certificate, and its VerifyConnection must let only servers of this cluster
	// pass: whoever gets through can write everything.
	TLS *tls.Config

	FSM    *fsm.FSM
	Logger *slog.Logger

	// Bootstrap lists the voters of a new cluster; it is used when DataDir holds
	// no Raft state. A member that is not bootstrapped waits to be added.
	Bootstrap []Server

	// Join lists Raft addresses of members that are asked, until one answers, to
	// admit this member while it knows of no configuration, or to correct its
	// address. Not with Bootstrap.
	Join []string
	// Witness: the member gives leadership away while another voter could lead.
	Witness bool
	// Version of the program, for MemberStats.
	Version string
	// Alive is what others know of a member; nil: everybody lives. It is asked
	// about those to remove, to count on, and to hand leadership to.
	Alive func(id string) bool
	// Admit says on the leader why a server may not become a member, if so. With
	// nil every server that TLS lets in may, but none that was a member before.
	Admit func(id, addr string) error
	// DeadServerGrace is how long a voter is dead before it is removed, if three
	// remain without it; default 1h. A dead voter beyond an odd number goes after
	// ten seconds: a replacement has come.
	DeadServerGrace time.Duration
	// Restoring is called on a leader before it restores a snapshot into the running
	// cluster: it ends all that decides on what it knows of the state. resume is
	// called when the outcome is known, or not to be known here.
	Restoring func(ctx context.Context) (resume func(), err error)
	// Handlers are RPCs for Call and CallLeader. An error that wraps ErrNotLeader
	// says that nothing was done: CallLeader tries again with the next leader.
	Handlers map[string]Handler
	// Epoch of the log: nothing but the methods of Open passes between members of
	// different epochs. The zero value is the first.
	Epoch raftdir.Epoch
	// Open are further RPCs, for members of any epoch (see Ask). They are also
	// answered by a Node that waits for Consult.
	Open map[string]Handler
	// Consult, if not nil, is called by Run before Raft starts, when the port is
	// open already. Run returns its error.
	Consult func(ctx context.Context) error
	// Dial replaces a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Step, for fault tests, is called around what is written to the disk, see
	// raftdir.Options. What it takes counts as the disk's time.
	Step func(step string)

	// Lock is the lock of DataDir if the caller holds it already; else New takes
	// it.
	Lock *DirLock

	HeartbeatTimeout time.Duration // a leader sends ten heartbeats in it, a follower with a fast disk waits 0.6 of it for one; default 1s
	ElectionWait     time.Duration // proposals and reads wait this long for a leader; default 5s
	CompareEvery     time.Duration // how often a leader compares the members' states; default 1h
	SnapshotEntries  uint64        // log entries after which a snapshot is taken; default 16384
	SnapshotBytes    int64         // bytes of log after which one is taken, if the state is not larger; default 32 MiB
	Trailing         uint64        // log entries kept behind a snapshot for members that lag; default by their size
	Reserve          int64         // disk space kept for the log; default raftdir.DefaultReserve
}

// Handler answers a call. from is the ID that the calling member gives.
type Handler = func(ctx context.Context, from string, body []byte) ([]byte, error)

func (c *Config) complete() error {
	switch {
	case c.NodeID == "":
		return errors.New("consensus: NodeID is empty")
	case c.DataDir == "":
		return errors.New("consensus: DataDir is empty")
	case c.Listener == nil:
		return errors.New("consensus: Listener is missing")
	case len(c.Join) > 0 && len(c.Bootstrap) > 0:
		return errors.New("consensus: Join and Bootstrap exclude each other")
	case c.FSM == nil:
		return errors.New("consensus: FSM is missing")
	case c.Logger == nil:
		return errors.New("consensus: Logger is missing")
	case c.TLS == nil:
		return fmt.Errorf("consensus: %w: none given", ErrTLS)
	case c.TLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return fmt.Errorf("consensus: %w: ClientAuth must be RequireAndVerifyClientCert", ErrTLS)
	case c.TLS.InsecureSkipVerify && c.TLS.VerifyConnection == nil:
		return fmt.Errorf("consensus: %w: InsecureSkipVerify without VerifyConnection", ErrTLS)
	}
	if host, _, err := net.SplitHostPort(c.AdvertiseAddr); err != nil {
		return fmt.Errorf("consensus: AdvertiseAddr: %w", err)
	} else if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("consensus: AdvertiseAddr %q: other servers can't reach this host", c.AdvertiseAddr)
	}
	setDefault(&c.HeartbeatTimeout, time.Second)
	setDefault(&c.ElectionWait, 5*time.Second)
	setDefault(&c.DeadServerGrace, time.Hour)
	setDefault(&c.CompareEvery, time.Hour)
	for _, a := range c.Join {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("consensus: Join: %w", err)
		}
	}
	for name := range c.Handlers {
		if strings.HasPrefix(name, ownMethods) {
			return fmt.Errorf("consensus: Handlers: names that begin with %q are taken", ownMethods)
		}
	}
	setDefault(&c.SnapshotEntries, 1<<14)
	setDefault(&c.SnapshotBytes, 32<<20)
	return nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
