package consensus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

	// Lock is the lock of DataDir if the caller holds it already; else New takes
	// it.
	Lock *DirLock

	HeartbeatTimeout time.Duration // a follower waits this long for its leader; default 1s
	ElectionWait     time.Duration // proposals and reads wait this long for a leader; default 5s
	SnapshotEntries  uint64        // log entries after which a snapshot is taken; default 16384
	SnapshotBytes    int64         // bytes of log after which one is taken, if the state is not larger; default 32 MiB
	Reserve          int64         // disk space kept for the log; default raftdir.DefaultReserve
}

func (c *Config) complete() error {
	switch {
	case c.NodeID == "":
		return errors.New("consensus: NodeID is empty")
	case c.DataDir == "":
		return errors.New("consensus: DataDir is empty")
	case c.Listener == nil:
		return errors.New("consensus: Listener is missing")
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
