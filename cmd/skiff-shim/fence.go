//go:build cgo

package main

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// fenceGrace is what containers get between SIGTERM and SIGKILL when their time
// without contact is over.
const fenceGrace = 3 * time.Second

// keepFence ends the containers whenever the time is over that the pod may run
// without contact to the cluster. Normally it wakes once in that time and finds
// that skiff has renewed it. A record that cannot be read changes nothing; one
// that was never there begins now.
func (s *supervisor) keepFence() {
	f := s.cfg.Fence
	allowed := time.Duration(f.Seconds) * time.Second
	last := shimproto.FenceRecord{Granted: int64(sinceBoot())}
	for {
		r, err := shimproto.ReadFence(f.File)
		switch {
		case err == nil:
			last = r
		case !os.IsNotExist(err):
			s.log.Warn("read the time of the last contact", "err", err)
		}
		left := allowed
		if !last.Always {
			left = time.Duration(last.Granted) + allowed - sinceBoot()
		}
		if left > 0 {
			time.Sleep(left)
			continue
		}
		s.log.Warn("no contact with the cluster, the pod may be replaced elsewhere: ending its containers", "allowed", allowed)
		s.endContainers()
		time.Sleep(time.Second)
	}
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// endContainers stops every container that runs; their records and the sandbox
// stay, so that skiff goes on from there.
func (s *supervisor) endContainers() {
	s.mu.Lock()
	var all []*container
	for _, c := range s.containers {
		if c.status.State == shimproto.Running {
			c.status.Message = "ended because the node had no contact with the cluster"
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := s.signal(c.status.ID, int(unix.SIGTERM)); err != nil {
				s.log.Warn("ask a container to end", "id", c.status.ID, "err", err)
			}
			select {
			case <-c.done:
				return
			case <-time.After(fenceGrace):
			}
			if err := s.signal(c.status.ID, int(unix.SIGKILL)); err != nil {
				s.log.Warn("end a container", "id", c.status.ID, "err", err)
			}
			select {
			case <-c.done:
			case <-time.After(killTimeout):
			}
		})
	}
	wg.Wait()
}
