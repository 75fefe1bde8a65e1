package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

var (
	// errAddressGone ends the parts of a process whose host has another address.
	errAddressGone = errors.New("the address of this host has changed")
	// errAgain asks main to run the same command line anew, in place.
	errAgain = errors.New("this process starts again")
)

// runAgain replaces this process by a new one with the same arguments. It only
// returns if that fails.
func runAgain() error {
	return fmt.Errorf("start again: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// addressGrace is how long an address may be away: a link that is set up anew
// loses it for a moment.
const addressGrace = 3 * time.Second

// watchAddress returns errAddressGone when the address that was found at the
// start is this host's no longer, and there is another one. An address that was
// given is its owner's business.
func (o *hostOptions) watchAddress(ctx context.Context) error {
	if !o.detected {
		return nil
	}
	updates := make(chan netlink.AddrUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	complaint := func(err error) { o.logger.Debug("watch the addresses of this host", "error", err) }
	if err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: complaint}); err != nil {
		return fmt.Errorf("watch the addresses of this host: %w", err)
	}
	look := time.NewTimer(addressGrace) // it may have gone since it was found
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-updates:
			if !open { // news were lost
				updates = nil
			}
			look.Reset(addressGrace)
			continue
		case <-look.C:
		}
		if updates == nil {
			look.Reset(addressGrace)
		}
		if hasAddress(o.advertise) {
			continue
		}
		next, err := hostAddress()
		if err != nil || next.IsLoopback() || next == o.advertise {
			look.Reset(addressGrace) // the host is cut off: nothing is better than what it had
			continue
		}
		o.logger.Warn("the address of this host has changed: skiff starts again with the new one; pods go on", "from", o.advertise, "to", next)
		return errAddressGone
	}
}

// unlessMoved gives err, with which a part has ended, unless it has ended because
// the address that was found at the start is gone, as when that changes before
// watchAddress has looked: then it waits a moment for the next one, and gives
// errAddressGone.
func (o *hostOptions) unlessMoved(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !o.detected || hasAddress(o.advertise) {
		return err
	}
	o.logger.Warn("the address of this host is gone: skiff starts again; pods go on", "was", o.advertise, "error", err)
	select {
	case <-ctx.Done():
	case <-time.After(addressGrace):
	}
	return fmt.Errorf("%w: %w", errAddressGone, err)
}

func hasAddress(a netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true // unknown
	}
	for _, i := range list {
		if p, err := netip.ParsePrefix(i.String()); err == nil && p.Addr().Unmap() == a {
			return true
		}
	}
	return false
}
