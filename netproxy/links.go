package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long links must be quiet before routes are checked.
const settle = 200 * time.Millisecond

// watchLinks restores routes and addresses after a link of the host went down
// and up, or lost or got an address: the kernel forgets routes then, silently.
func (p *Proxy) watchLinks(ctx context.Context) error {
	for {
		if err := p.followLinks(ctx); ctx.Err() == nil {
			p.cfg.Logger.Warn("changes of links may have been missed", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// followLinks returns when the kernel's messages end, as they do when too many
// come at once.
func (p *Proxy) followLinks(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	if err := netlink.LinkSubscribe(links, done); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	due := time.After(settle) // what changed before is not told
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-links:
			if !ok {
				return errors.New("the kernel's messages about links ended")
			}
			// Pods' links come and go all the time.
			if a := u.Attrs(); !strings.HasPrefix(a.Name, ruleset.PodLinkPrefix) && a.Flags&net.FlagUp != 0 {
				due = time.After(settle)
			}
		case _, ok := <-addrs:
			if !ok {
				return errors.New("the kernel's messages about addresses ended")
			}
			due = time.After(settle)
		case <-due:
			due = nil
			if !p.restoreRoutes() {
				due = time.After(10 * time.Second)
			}
		}
	}
}

func (p *Proxy) restoreRoutes() bool {
	err := errors.Join(p.network.Prepare(), p.network.Reapply())
	if err != nil {
		p.cfg.Logger.Error("routes are not complete after a change of links", "error", err)
	}
	return err == nil
}

// warnForeignRules logs rules of others that stop what this package forwards:
// an accept of ours cannot undo their drop.
func (p *Proxy) warnForeignRules() {
	conn, err := nftables.New()
	if err != nil {
		return
	}
	chains, err := conn.ListChains()
	if err != nil {
		return
	}
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == unix.NF_INET_FORWARD && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop &&
			(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet) {
			p.cfg.Logger.Warn("a firewall drops forwarded packets by default; pods reach others only if it accepts their range",
				"table", c.Table.Name, "chain", c.Name, "podRange", p.cfg.ClusterCIDR)
		}
	}
}
