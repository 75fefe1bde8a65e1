// Package probe asks containers how they are: httpGet, tcpSocket, exec and
// grpc, with the thresholds and delays of the pod API. One Prober runs one
// probe of one container, for the life of one attempt.
package probe

import (
	"context"
	"fmt"
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

// ExecFunc runs a command in the container.
type ExecFunc func(ctx context.Context, args []string) (output string, exitCode int, err error)

// Config configures a Prober.
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
	// Settled is called when enough answers in a row agree and differ from
	// what was known before. A liveness probe starts as passed, a startup
	// probe as neither.
	Settled func(ok bool)
	// Failed is called with the reason of each single failure, for events.
	Failed func(message string)
}

// Run probes until ctx ends or, for liveness and startup, the result is final:
// a failed liveness or startup probe ends the container, a passed startup
// probe is not asked again.
func Run(ctx context.Context, c Config) {
	p := c.Probe
	delay := time.Until(c.StartedAt.Add(time.Duration(p.InitialDelaySeconds) * time.Second))
	timer := time.NewTimer(max(0, delay))
	defer timer.Stop()
	period := seconds(p.PeriodSeconds, 10)
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
	next := time.Now().Add(max(0, delay))
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		ok, msg := ask(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if !ok {
			c.Failed(fmt.Sprintf("%s probe failed: %s", c.Kind, msg))
		}
		if changed, now := t.count(ok); changed {
			c.Settled(now)
			if c.Kind == Startup || c.Kind == Liveness && !now {
				return
			}
		}
		if next = next.Add(period); next.Before(time.Now()) {
			next = time.Now().Add(period)
		}
		timer.Reset(time.Until(next))
	}
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
