// Package netdump reads lists of links, addresses, routes and the like from the
// kernel while others change them. The kernel hands out long lists in parts, and
// marks one as interrupted when something was changed between two parts: it may
// lack what was there all the time.
package netdump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries is how often a list is read at most. A read takes about a millisecond, and
// starting a pod makes a dozen changes.
const tries = 100

// Whole calls list, such as a bound LinkList, until the kernel was not interrupted.
// The error of the last try when that does not happen, with no list.
func Whole[T any](list func() ([]T, error)) ([]T, error) {
	var all []T
	var err error
	for range tries {
		all, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}
