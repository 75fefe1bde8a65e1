package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
)

// EventType says what an Event tells.
type EventType string

// Event types.
const (
	ContainerStarted EventType = "ContainerStarted"
	ContainerExited  EventType = "ContainerExited"
	ContainerRemoved EventType = "ContainerRemoved"
	// SandboxGone: the shim ended. Containers that had not exited by then
	// were killed and are Exited with a Message.
	SandboxGone EventType = "SandboxGone"
)

// Event is a change in a sandbox.
type Event struct {
	Type      EventType
	Container ContainerStatus // zero for SandboxGone
}

// Events returns changes from now on, until ctx ends or the sandbox is gone;
// then the channel is closed. Nothing is dropped; a slow reader delays only
// itself.
func (s *Sandbox) Events(ctx context.Context) <-chan Event {
	sub := &subscriber{wake: make(chan struct{}, 1)}
	out := make(chan Event)
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		close(out)
		return out
	}
	if s.subs == nil {
		s.subs = map[*subscriber]struct{}{}
	}
	s.subs[sub] = struct{}{}
	s.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			s.mu.Lock()
			delete(s.subs, sub)
			s.mu.Unlock()
		}()
		sub.deliver(ctx, out)
	}()
	return out
}

// emit gives an event to all subscribers. mu is held.
func (s *Sandbox) emit(ev Event) {
	for sub := range s.subs {
		sub.put(ev)
	}
}

// subscriber is an unbounded queue with one reader.
type subscriber struct {
	mu    sync.Mutex
	queue []Event
	ended bool
	wake  chan struct{}
}

func (s *subscriber) put(ev Event) {
	s.mu.Lock()
	s.queue = append(s.queue, ev)
	s.mu.Unlock()
	s.signal()
}

func (s *subscriber) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.signal()
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) deliver(ctx context.Context, out chan<- Event) {
	for {
		s.mu.Lock()
		q, ended := s.queue, s.ended
		s.queue = nil
		s.mu.Unlock()
		for _, ev := range q {
			select {
			case out <- ev:
			case <-ctx.Done():
				return
			}
		}
		if ended && len(q) == 0 {
			return
		}
		if ended {
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

func unmarshal(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode the shim's message: %w", err)
	}
	return nil
}
