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

// fence is how long the containers may run without contact to the cluster.
type fence struct {
	cfg     *shimproto.Fence
	allowed time.Duration
	mu      sync.Mutex
	last    shimproto.FenceRecord // as last read
}

// left is how long they may from now on. A record that cannot be read changes
// nothing; one that was never there begins with the shim.
func (f *fence) left() (time.Duration, error) {
	r, err := shimproto.ReadFence(f.cfg.File)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.last = r
	} else if os.IsNotExist(err) {
		err = nil
	}
	if f.last.Always {
		return f.allowed, err
	}
	return time.Duration(f.last.Granted) + f.allowed - sinceBoot(), err
}

// keepFence ends the containers whenever the time is over that the pod may run
// without contact. Normally it wakes once in that time and finds that skiff has
// renewed it.
func (s *supervisor) keepFence() {
	for {
		left, err := s.fence.left()
		if err != nil {
			s.log.Warn("read the time of the last contact", "err", err)
		}
		if left > 0 {
			time.Sleep(left)
			continue
		}
		s.log.Warn("no contact with the cluster, the pod may be replaced elsewhere: ending its containers", "allowed", s.fence.allowed)
		s.endContainers()
		time.Sleep(time.Second)
	}
}

// fenced refuses a start that comes too late, as from a skiff that was stopped
// between its decision and now.
func (s *supervisor) fenced() error {
	if s.fence == nil {
		return nil
	}
	if left, _ := s.fence.left(); left <= 0 {
		return refuse(shimproto.CodeSetup, "the node has had no contact with the cluster for more than %s", s.fence.allowed)
	}
	return nil
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
