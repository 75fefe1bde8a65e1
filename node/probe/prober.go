// Package probe asks containers how they are: httpGet, tcpSocket, exec and
// grpc, with the thresholds and delays of the pod API. One Run is one probe
// of one container, for the life of one attempt.
//
// What could not be asked at all (a port name that is not there, a command
// that could not be run) is neither a success nor a failure: it is told and
// does not count, as with kubelet.
package probe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Kind says what a probe's result decides.
type Kind string

// Kinds of probes.
const (
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
	Startup   Kind = "Startup"
)

// Result is the outcome of asking once.
type Result int

// Results. Warned passes, with something to tell.
const (
	Passed Result = iota
	Warned
	Failed
	Unknown
)

// Label is the result as metrics name it.
func (r Result) Label() string {
	switch r {
	case Passed, Warned:
		return "successful"
	case Failed:
		return "failed"
	}
	return "unknown"
}

// Reasons of what Tell tells.
const (
	ReasonUnhealthy = "Unhealthy"
	ReasonWarning   = "ProbeWarning"
)

// ExecFunc runs a command in the container. An error means that it could not
// be run.
type ExecFunc func(ctx context.Context, args []string) (output string, exitCode int, err error)

// Config configures a probe.
type Config struct {
	Kind      Kind
	Probe     *v1.Probe
	Host      string             // the pod's IP, used when the probe names no host
	Ports     []v1.ContainerPort // for ports given by name
	StartedAt time.Time          // of the container
	Exec      ExecFunc
	// Initially is what a readiness probe is taken to say before its first
	// answers: false, or what was known of a container that is adopted.
	Initially bool
	// Spread lets a random part of the period pass before the first question,
	// so that the probes of all pods do not begin at once after a restart.
	Spread bool
	// Settled is called when enough answers in a row agree and differ from
	// what was known before. A liveness probe starts as passed, a startup
	// probe as neither.
	Settled func(ok bool)
	// Tell is called with what an event should say; see the Reason constants.
	Tell func(reason, message string)
	// Asked, unless nil, is called after each question, for metrics.
	Asked func(r Result, took time.Duration)
}

// attempts is how often a question is tried that could not be asked.
const attempts = 3

// Run probes until ctx ends or, for liveness and startup, the result is final:
// a failed liveness or startup probe ends the container, a passed startup
// probe is not asked again.
func Run(ctx context.Context, c Config) {
	p := c.Probe
	period := seconds(p.PeriodSeconds, 10)
	delay := firstDelay(c, period, time.Now())
	timer := time.NewTimer(delay)
	defer timer.Stop()
	t := tally{success: max(1, p.SuccessThreshold), failure: p.FailureThreshold}
	if t.failure == 0 {
		t.failure = 3
	}
	switch c.Kind {
	case Liveness:
		t.settle(true)
	case Readiness:
		t.settle(c.Initially)
	}
	next := time.Now().Add(delay)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		r := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if r != Unknown {
			if changed, now := t.count(r != Failed); changed {
				c.Settled(now)
				if c.Kind == Startup || c.Kind == Liveness && !now {
					return
				}
			}
		}
		if next = next.Add(period); next.Before(time.Now()) {
			next = time.Now().Add(period)
		}
		if p.Exec == nil {
			next = together(next)
		}
		timer.Reset(time.Until(next))
	}
}

// tick is how far apart the moments are at which probes are asked over the
// network.
const tick = 100 * time.Millisecond

var ticksBegan = time.Now()

// together is the next tick, for all probes of this process the same: many
// that are asked in a row cost a third of as many that each wake the process
// up. After the first question, which waits for nothing, a probe is put off by
// less than a tick once; its period is many ticks. Commands are better run one
// after the other.
func together(at time.Time) time.Time {
	past := at.Sub(ticksBegan) % tick
	if past > 0 {
		past -= tick
	}
	return at.Add(-past)
}

// firstDelay is how long to wait before the first question. StartedAt may be
// of a clock that was set since: the delay is never longer than it should be
// for a container that starts now.
func firstDelay(c Config, period time.Duration, now time.Time) time.Duration {
	initial := time.Duration(c.Probe.InitialDelaySeconds) * time.Second
	d := min(max(0, c.StartedAt.Add(initial).Sub(now)), initial)
	if c.Spread {
		d = max(d, rand.N(period))
	}
	return d
}

// once asks, tells what is to be told, and returns the result.
func (c Config) once(ctx context.Context) Result {
	began := time.Now()
	var r Result
	var msg string
	for range attempts {
		if r, msg = ask(ctx, c); r != Unknown || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return Unknown
	}
	switch r {
	case Failed:
		c.Tell(ReasonUnhealthy, fmt.Sprintf("%s probe failed: %s", c.Kind, msg))
	case Unknown:
		c.Tell(ReasonUnhealthy, fmt.Sprintf("%s probe errored and resulted in unknown state: %s", c.Kind, msg))
	case Warned:
		c.Tell(ReasonWarning, fmt.Sprintf("%s probe warning: %s", c.Kind, msg))
	}
	if c.Asked != nil {
		c.Asked(r, time.Since(began))
	}
	return r
}

func seconds(n int32, otherwise int32) time.Duration {
	if n == 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// tally counts answers in a row.
type tally struct {
	success, failure int32 // thresholds
	known, is        bool
	last             bool
	run              int32
}

func (t *tally) settle(ok bool) { t.known, t.is = true, ok }

func (t *tally) count(ok bool) (changed, is bool) {
	if t.run > 0 && t.last == ok {
		t.run++
	} else {
		t.last, t.run = ok, 1
	}
	if (ok && t.run < t.success) || (!ok && t.run < t.failure) {
		return false, t.is
	}
	if t.known && t.is == ok {
		return false, ok
	}
	t.settle(ok)
	return true, ok
}
