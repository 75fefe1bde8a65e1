package netdump

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWhole(t *testing.T) {
	interrupted := fmt.Errorf("dump: %w", netlink.ErrDumpInterrupted)
	for _, c := range []struct {
		name        string
		interrupted int
		then        error
		calls       int
		want        error
	}{
		{"at once", 0, nil, 1, nil},
		{"interrupted twice", 2, nil, 3, nil},
		{"fails", 0, unix.EPERM, 1, unix.EPERM},
		{"interrupted, then fails", 1, unix.EPERM, 2, unix.EPERM},
		{"interrupted for ever", tries + 1, nil, tries, netlink.ErrDumpInterrupted},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			got, err := Whole(func() ([]int, error) {
				calls++
				if calls <= c.interrupted {
					return []int{1}, interrupted
				}
				return []int{1, 2}, c.then
			})
			if !errors.Is(err, c.want) || calls != c.calls {
				t.Errorf("%v after %d calls, want %v after %d", err, calls, c.want, c.calls)
			}
			if whole := len(got) == 2; whole != (c.want == nil) {
				t.Errorf("list %v with error %v", got, err)
			}
		})
	}
}
